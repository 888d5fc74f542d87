//! The `mayfly` command.

fn main() -> std::process::ExitCode {
    mayfly_engine::cli::main()
}
