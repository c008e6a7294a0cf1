# What an operator does, under systemd; what comes of it lies in files of $1.
cd "$1" || exit 1
dpkg --no-triggers --install stellwerk.deb > install 2>&1
systemctl is-enabled stellwerk > fresh 2>&1
systemctl is-active stellwerk >> fresh 2>&1
cp edited.yaml /etc/stellwerk/stellwerk.yaml
systemctl enable --now stellwerk > start 2>&1
systemctl show --property=ActiveState,SubState,StatusText,NRestarts stellwerk > started 2>&1
stellwerk status > status 2>&1
mkdir -p /run/netns
ip netns add pod
export CNI_COMMAND=ADD CNI_CONTAINERID=c1 CNI_IFNAME=eth0 CNI_PATH=/usr/bin CNI_NETNS=/run/netns/pod
echo '{"cniVersion":"1.1.0","name":"n","type":"stellwerk-cni"}' | stellwerk-cni > cni 2>&1
CNI_COMMAND=DEL
echo '{"cniVersion":"1.1.0","name":"n","type":"stellwerk-cni"}' | stellwerk-cni > cni-gone 2>&1
systemctl reload stellwerk > reload 2>&1
kill -ABRT "$(systemctl show --property=MainPID --value stellwerk)"
for _ in $(seq 200); do
    case "$(systemctl show --property=ActiveState,NRestarts stellwerk | tr '\n' ' ')" in
        *NRestarts=1*ActiveState=active* | *ActiveState=active*NRestarts=1*) break ;;
    esac
    sleep 0.1
done
systemctl show --property=ActiveState,NRestarts stellwerk > again 2>&1
journalctl --no-pager --output=cat --unit=stellwerk > journal 2>&1
dpkg --no-triggers --purge stellwerk > purge 2>&1
echo "status $?" >> purge
systemctl is-active stellwerk > gone 2>&1
ls -A /sys/fs/bpf > pins
ip -o link > links
touch done
