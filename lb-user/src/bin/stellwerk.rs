//! The binary: parses the command line and hands over. Nothing else is here.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;
use lb_user::apply::Paths;
use lb_user::cli::{Cli, Cni, Command, Dns, Identity, Ipam, Listing, Nat, Route, Store};
use lb_user::route::command::{self, Done};
use lb_user::show::Table;
use lb_user::{agent, apply, bundle, cni, dns, doctor, log, monitor, show, top, trace};

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(why) => {
            eprintln!("stellwerk: {why}");
            return ExitCode::from(2);
        }
    };
    match dispatch(&cli) {
        Ok(code) => code,
        Err(error) => {
            let hint = if is_refused(&error) && !is_root() { "; this needs root: try again by sudo" } else { "" };
            eprintln!("stellwerk: {error:#}{hint}");
            ExitCode::FAILURE
        }
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// Whether the kernel said that we may not. Some libraries keep no more of that than its text.
fn is_refused(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    ["Permission denied", "Operation not permitted"].iter().any(|words| text.contains(words))
}

fn dispatch(cli: &Cli) -> anyhow::Result<ExitCode> {
    let paths = Paths::new(std::path::absolute(&cli.pin_path)?);
    match &cli.command {
        Command::Check { file } => Ok(check(file)),
        Command::Run(run) => {
            log::start(run.log);
            apply::pin::check(&paths)?;
            let routes = path(&run.store)?.unwrap_or_else(|| paths.routes());
            agent::run(&agent::Options { config: run.config.clone(), routes, paths })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Unload => {
            log::start(log::Form::Text);
            if let (about, true) = agent::running(&paths) {
                // It would go on by itself, with nothing to write to.
                anyhow::bail!(
                    "the agent runs (process {}): stop it first, traffic goes on until it is unloaded",
                    about.pid
                );
            }
            apply::unload(&paths)?.iter().for_each(|line| println!("{line}"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Bundle { file, config } => {
            let names = bundle::write(&paths, config.as_deref(), file)?;
            write(format!("{}: {}\n", file.display(), names.join(", ")).as_bytes())
        }
        Command::Trace(asked) => {
            let answers = trace::trace(&paths, &asked.question()?)?;
            written(trace::write(&answers, asked.listing.json, &mut std::io::stdout().lock()))
        }
        Command::Monitor(asked) => {
            let summary = monitor::run(&paths, &asked.asked(), std::io::stdout(), || eprintln!("stellwerk: watching"))?;
            eprintln!("stellwerk: {} events, {} packets lost for want of room", summary.events, summary.lost);
            Ok(ExitCode::SUCCESS)
        }
        Command::Status(listing) => print(show::status(&paths)?, listing),
        Command::Top(live) => {
            top::run(&paths, Duration::from_secs(live.every))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Ports(listing) => print(show::ports(&paths)?, listing),
        Command::Services(listing) => print(show::services(&paths)?, listing),
        Command::Announce(listing) => print(show::announce(&paths)?, listing),
        Command::Addresses(listing) => print(show::addresses(&paths)?, listing),
        Command::Backends(listing) => print(show::backends(&paths)?, listing),
        Command::Flows(flows) => print(show::flows(&paths, flows.nat)?, &flows.listing),
        Command::Nat(Nat::Status(listing)) => print(show::nat_status(&paths)?, listing),
        Command::Nat(Nat::Flows(listing)) => print(show::nat_flows(&paths)?, listing),
        Command::Nat(Nat::Top(top)) => print(show::nat_top(&paths, top.n)?, &top.listing),
        Command::Route(route) => self::route(&paths, route),
        Command::Dns(Dns::Query(question)) => {
            let (table, said) = dns::query::query(&paths, &question.name, &question.kind)?;
            said.iter().for_each(|said| eprintln!("stellwerk: {said}"));
            print(table, &question.listing)
        }
        Command::Dns(Dns::Dump(listing)) => print(dns::query::dump(&paths)?, listing),
        Command::Dns(Dns::Status(listing)) => print(dns::query::counts(&paths)?, listing),
        Command::Ipam(ipam) => self::ipam(&paths, ipam),
        Command::Cni(Cni::Install { bin_dir, conf_dir }) => {
            cni::install::install(&paths, bin_dir, conf_dir)?.iter().for_each(|line| println!("{line}"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => completions(*shell),
        Command::Manual { dir } => {
            clap_mangen::generate_to(Cli::command(), dir).with_context(|| dir.display().to_string())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Drops(listing) => print(show::drops(&paths)?, listing),
        Command::Version(listing) => print(show::version(&paths)?, listing),
        Command::Doctor(of) => {
            let (table, healthy) = doctor::doctor(&paths, of.config.as_deref())?;
            let printed = print(table, &of.listing)?;
            Ok(if healthy { printed } else { ExitCode::FAILURE })
        }
    }
}

fn ipam(paths: &Paths, ipam: &Ipam) -> anyhow::Result<ExitCode> {
    match ipam {
        Ipam::Show(listing) => print(show::ipam(paths)?, listing),
        Ipam::Check(listing) => {
            let (table, wrong) = show::ipam_check(paths)?;
            let printed = print(table, listing)?;
            Ok(if wrong { ExitCode::FAILURE } else { printed })
        }
        Ipam::Release { of } => write(show::ipam_release(paths, of)?.as_bytes()),
    }
}

fn path(store: &Store) -> anyhow::Result<Option<PathBuf>> {
    Ok(store.path.as_ref().map(std::path::absolute).transpose()?)
}

fn route(paths: &Paths, route: &Route) -> anyhow::Result<ExitCode> {
    match route {
        Route::Add(add) => {
            let done = command::add(paths, &add.words(), path(&add.identity.store)?.as_deref())?;
            changed(paths, &done, &add.identity, true)
        }
        Route::Get(get) => {
            print(show::routes(paths, path(&get.store)?.as_deref(), get.interface.as_deref())?, &get.listing)
        }
        Route::Remove(remove) => {
            let identity = &remove.identity;
            let done = command::remove(paths, &identity.words(), path(&identity.store)?.as_deref())?;
            changed(paths, &done, identity, false)
        }
    }
}

/// What was done to standard output, what else there is to say to standard error.
fn changed(paths: &Paths, done: &Done, identity: &Identity, there: bool) -> anyhow::Result<ExitCode> {
    done.notices.iter().for_each(|notice| eprintln!("stellwerk: {notice}"));
    match (identity.json, there) {
        (true, true) => {
            let table = show::route(paths, path(&identity.store)?.as_deref(), &done.route)?;
            print(table, &Listing { json: true })
        }
        (true, false) => write(b"[]\n"),
        (false, _) => write(format!("{}\n", done.said).as_bytes()),
    }
}

fn completions(shell: Shell) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "stellwerk", &mut text);
    write(&text)
}

fn print(table: Table, listing: &Listing) -> anyhow::Result<ExitCode> {
    written(table.write(listing.json, &mut std::io::stdout().lock()))
}

fn write(text: &[u8]) -> anyhow::Result<ExitCode> {
    written(std::io::stdout().write_all(text))
}

fn written(result: std::io::Result<()>) -> anyhow::Result<ExitCode> {
    match result {
        // A reader that has seen enough (`| head`) is no error.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn check(file: &std::path::Path) -> ExitCode {
    match lb_user::check::check(file) {
        Ok(summary) => {
            print!("{summary}");
            ExitCode::SUCCESS
        }
        Err(errors) => {
            eprintln!("{errors}");
            ExitCode::FAILURE
        }
    }
}
