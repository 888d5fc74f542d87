//! `mayfly run` and `mayfly shell`, as a person uses them.

use std::process::Command;

use mayfly_chaos_tests::home::{GOLDEN, Home, program_path};
use mayfly_chaos_tests::slots;
use mayfly_chaos_tests::terminal::OnTerminal;

#[test]
fn run_passes_input_output_environment_and_the_exit_code() {
    let home = Home::shared();
    let _slot = slots::take(1);
    let script = "cat; echo \"$GREETING from $(pwd)\"; echo to-stderr >&2; exit 7";
    let args =
        ["-q", "run", GOLDEN, "-e", "GREETING=hello", "-w", "/usr", "--", "sh", "-c", script];
    // More than any buffer on the way, and no newline at its end.
    let input = "0123456789abcdef".repeat(64 << 10);
    let ended = home.mayfly(args).stdin(input.as_str()).run();
    assert_eq!(ended.code(), 7, "{}", ended.stderr);
    assert_eq!(ended.stderr, "to-stderr\n");
    assert!(
        ended.stdout.starts_with(&input)
            && ended.stdout.len() == input.len() + "hello from /usr\n".len()
    );
    assert!(ended.stdout.ends_with("hello from /usr\n"));
    assert_eq!(home.leaks_of(ended.pid), []);
}

#[test]
fn run_reports_commands_that_cannot_run_or_die_as_a_shell_does() {
    let home = Home::shared();
    let _slot = slots::take(1);
    let missing = home.mayfly(["run", GOLDEN, "--", "no-such-program"]).run();
    assert_eq!(missing.code(), 127, "{missing}");
    assert!(missing.complaint().contains("no-such-program"), "{missing}");
    let killed = home.mayfly(["run", GOLDEN, "--", "sh", "-c", "kill -9 $$"]).run();
    assert_eq!((killed.code(), &*killed.stderr), (137, ""), "{killed}");
}

#[test]
fn shell_is_a_terminal_of_the_right_size_and_gives_ours_back() {
    let home = Home::shared();
    let _slot = slots::take(1);
    let mut command = Command::new(program_path());
    command.args(["shell", "--no-daemon", GOLDEN, "--", "/bin/sh"]).env("TERM", "vt100");
    command.env("MAYFLY_HOME", home.layout().home()).env("MAYFLY_RUN", home.layout().run());
    let mut shell = OnTerminal::start(command, 33, 77);
    let before = shell.settings();
    shell.until("# ");
    // The result is not in what the terminal echoes of the keys.
    shell.type_in("tty; stty size; echo $TERM-$((6 * 7)); exit 3\r");
    let (code, screen) = shell.wait();
    assert_eq!(code, Some(3), "{screen:?}");
    assert!(
        screen.contains("/dev/pts/")
            && screen.contains("33 77\r\n")
            && screen.contains("vt100-42\r\n"),
        "{screen:?}"
    );
    let after = shell.settings();
    assert_eq!((after.local_flags, after.input_flags, after.output_flags), {
        (before.local_flags, before.input_flags, before.output_flags)
    });
    assert_eq!(home.leaks_of(shell.pid()), []);
}

#[test]
fn shell_refuses_a_pipe() {
    let ended = Home::shared().mayfly(["shell", GOLDEN]).run();
    assert!(ended.complaint().contains("terminal"), "{ended}");
}

#[test]
fn a_closed_terminal_window_discards_the_session() {
    let home = Home::shared();
    let _slot = slots::take(1);
    let mut command = Command::new(program_path());
    command.args(["shell", "--no-daemon", GOLDEN, "--", "/bin/sh"]);
    command.env("MAYFLY_HOME", home.layout().home()).env("MAYFLY_RUN", home.layout().run());
    let mut shell = OnTerminal::start(command, 24, 80);
    shell.until("# ");
    let (code, pid) = shell.hang_up();
    assert_ne!(code, Some(0));
    assert_eq!(home.leaks_of(pid), []);
}
