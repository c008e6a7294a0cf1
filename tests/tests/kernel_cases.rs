//! Packet cases in the kernel, by BPF_PROG_TEST_RUN, in step with the host's engine; and how much
//! work the verifier has with the programs. Needs root; without it the test says so and passes.
//!
//! The budget stands in `tests/verifier-budget.json`, by kernel; `BLESS=1` writes the present figures.

use std::collections::BTreeMap;
use std::path::Path;

use stellwerk_tests::case::Case;
use stellwerk_tests::runner::{self, kernel};

/// Packets that are made of each.
const VARIANTS: usize = 5;

type Budget = BTreeMap<String, BTreeMap<String, u32>>;

#[test]
fn host_and_kernel_agree() {
    if !is_root() {
        println!("left out: loading programs needs root");
        return;
    }
    let cases: Vec<Case> = runner::cases().into_iter().map(Result::unwrap).collect();
    let cases: Vec<&Case> = cases.iter().filter(|case| case.host_only.is_none()).collect();
    let links = &cases.first().expect("there are cases").world.links;
    kernel::namespace(links).unwrap();
    let mut groups: BTreeMap<String, Vec<&Case>> = BTreeMap::new();
    for case in &cases {
        groups.entry(format!("{:?}", kernel::capacity(case))).or_default().push(case);
    }
    let mut wrong = Vec::new();
    let mut verified = BTreeMap::new();
    for group in groups.values() {
        let mut machine = kernel::Machine::new(links, &kernel::capacity(group[0])).unwrap();
        wrong.extend(group.iter().filter_map(|case| machine.run(case).err()).map(|e| format!("{e:?}")));
        verified = machine.verified().unwrap();
    }
    println!("instructions that the verifier walked: {verified:?}");
    assert!(wrong.is_empty(), "{} of {} cases differ:\n\n{}", wrong.len(), cases.len(), wrong.join("\n\n"));
    println!("{} cases agree", cases.len());
    within_budget(verified);
}

/// The engine over a view of the live maps: the packets of all cases, and others that are made of them.
#[test]
fn trace_says_what_the_kernel_does() {
    if !is_root() {
        println!("left out: loading programs needs root");
        return;
    }
    let cases: Vec<Case> = runner::cases().into_iter().map(Result::unwrap).collect();
    let links = &cases.first().expect("there are cases").world.links;
    kernel::namespace(links).unwrap();
    let usual = format!("{:?}", kernel::capacity(&cases[0]));
    let mut machine = kernel::Machine::new(links, &kernel::capacity(&cases[0])).unwrap();
    let (mut count, mut wrong) = (0, Vec::new());
    for case in cases.iter().filter(|c| c.host_only.is_none() && format!("{:?}", kernel::capacity(c)) == usual) {
        match machine.run_traced(case, VARIANTS) {
            Ok(packets) => count += packets,
            Err(error) => wrong.push(format!("{error:?}")),
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n\n{}", wrong.len(), wrong.join("\n\n"));
    assert!(count > 2_000, "{count} packets alone");
    println!("{count} packets became what their traces said");
}

/// Holds the verifier's instruction counts against the budget of this kernel.
fn within_budget(verified: BTreeMap<String, u32>) {
    let mut budget: Budget = serde_json::from_str(include_str!("../verifier-budget.json")).unwrap();
    let kernel = kernel_version();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("verifier-budget.json");
    if std::env::var_os("BLESS").is_some() && path.exists() {
        budget.insert(kernel, verified);
        std::fs::write(path, serde_json::to_string_pretty(&budget).unwrap() + "\n").unwrap();
        return;
    }
    let Some(budget) = budget.get(&kernel) else {
        println!("no budget for kernel {kernel}");
        return;
    };
    for (program, count) in verified {
        let most = budget.get(&program).copied().unwrap_or(u32::MAX / 2);
        assert!(u64::from(count) * 10 <= u64::from(most) * 11, "{program}: {count} instructions, budget {most} + 10 %");
    }
}

/// `6.18`
fn kernel_version() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.split(['.', '-']).take(2).collect::<Vec<_>>().join(".")
}

#[expect(unsafe_code, reason = "a system call without a safe wrapper")]
fn is_root() -> bool {
    // SAFETY: it takes nothing and always succeeds.
    unsafe { libc::geteuid() == 0 }
}
