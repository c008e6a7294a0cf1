//! The binary that container runtimes call. Nothing else is here.

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_user::cni::main()
}
