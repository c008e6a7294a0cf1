//! A cluster and its API that change and fail by chance.

use std::time::Duration;

use stellwerk_tests::fake_api::{FakeApi, Faults, Streams};

use super::harness::*;

/// A small generator of numbers, so that a run can be had again by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % u64::from(bound)) as u32
    }
}

fn change(api: &FakeApi, random: &mut Random) {
    let which = random.below(6);
    let name = format!("s{which}");
    match random.below(8) {
        0 => api.put(service(&name, which)),
        1 => api.delete("services", "x", &name),
        2 | 3 => {
            let count = random.below(4);
            let part = random.below(2);
            // The two slices of a service name different endpoints.
            let endpoints = (0..count).map(|_| endpoint(which * 20 + part * 10 + random.below(10))).collect();
            api.put(slice(&name, &format!("{name}-{part}"), endpoints));
        }
        4 => api.delete("endpointslices", "x", &format!("{name}-{}", random.below(2))),
        5 => api.put(pod(&format!("{name}-{}", random.below(3)), &name, random.below(200))),
        6 => api.delete("pods", "x", &format!("{name}-{}", random.below(3))),
        _ => api.put(node(&format!("n{}", random.below(3)), ["east", "west"][random.below(2) as usize])),
    }
}

fn go_wrong(api: &FakeApi, random: &mut Random) {
    let count = random.below(3) as usize + 1;
    match random.below(11) {
        0 => api.change_faults(|f| f.statuses.extend(std::iter::repeat_n(500, count))),
        1 => api.change_faults(|f| f.statuses.extend(std::iter::repeat_n(401, count))),
        2 => api.change_faults(|f| f.statuses.extend(std::iter::repeat_n(410, count))),
        3 => api.change_faults(|f| f.cut_lines += count as u32),
        4 => api.expire_watches(),
        5 => api.cut_watches(),
        6 => api.forget(),
        7 => api.change_faults(|f| f.gone_by_status = !f.gone_by_status),
        8 => api.change_faults(|f| f.bookmarks = Duration::from_millis(count as u64)),
        9 => api.change_faults(|f| f.streams = if count == 1 { Streams::Yes } else { Streams::Refused }),
        _ => {
            api.set_away(true);
            change(api, random);
            api.set_away(false);
        }
    }
}

#[test]
fn churn_with_faults_ends_as_a_fresh_list() {
    for seed in 0..8 {
        let mut random = Random(seed);
        let api = cluster();
        let mut agent = Agent::start(&api, true);
        for step in 0..30 {
            for _ in 0..random.below(4) {
                change(&api, &mut random);
            }
            if random.below(3) == 0 {
                go_wrong(&api, &mut random);
            }
            agent.take(Duration::from_millis(u64::from(random.below(4))));
            if step % 10 == 9 {
                agent.follows(&api);
            }
        }
        api.change_faults(|faults| *faults = Faults { expired: faults.expired, cut: faults.cut, ..Faults::default() });
        agent.follows(&api);
        let mut fresh = Agent::start(&api, true);
        fresh.until("the first list", |agent| agent.changes > 0);
        assert_eq!(fresh.manifests.services(), agent.manifests.services(), "seed {seed}");
    }
}
