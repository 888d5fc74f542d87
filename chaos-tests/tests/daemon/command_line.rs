//! The command line with a running daemon.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use mayfly_chaos_tests::daemon::Daemon;
use mayfly_chaos_tests::home::{GOLDEN, Home, program_path};
use mayfly_chaos_tests::program::{self, Finished};
use mayfly_chaos_tests::slots;
use mayfly_chaos_tests::terminal::OnTerminal;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::SMALL_POOL;

#[test]
fn run_and_shell_use_the_daemon_and_behave_as_without_one() {
    let _all = slots::take(slots::ALL);
    let daemon = Daemon::aside(SMALL_POOL);
    let home = daemon.home();
    let run =
        |args: &[&str]| home.mayfly(["-q", "run", GOLDEN].into_iter().chain(args.iter().copied()));

    let script = "cat; echo \"$GREETING from $(pwd)\"; echo to-stderr >&2; exit 7";
    // More than any buffer on the way, and no newline at its end.
    let input = "0123456789abcdef".repeat(64 << 10);
    let ended = run(&["-e", "GREETING=hello", "-w", "/usr", "--", "sh", "-c", script])
        .stdin(input.as_str())
        .run();
    assert_eq!((ended.code(), &*ended.stderr), (7, "to-stderr\n"));
    assert!(
        ended.stdout.starts_with(&input) && ended.stdout[input.len()..] == *"hello from /usr\n"
    );

    for (command, code) in [
        (["sh", "-c", "kill -9 $$"].as_slice(), 137),
        (&["no-such-program"], 127),
        (&["/etc/passwd"], 126),
        (&["sh", "-c", "exit 255"], 255),
    ] {
        let args: Vec<&str> = ["--"].into_iter().chain(command.iter().copied()).collect();
        let (with, without) = (run(&args).run(), run(&[&["--no-daemon"], &*args].concat()).run());
        assert_eq!((with.code(), without.code()), (code, code), "{with}\n{without}");
        assert_eq!((&with.stdout, &with.stderr), (&without.stdout, &without.stderr));
    }
    let unknown = home.mayfly(["run", "defualt", "--", "true"]).run();
    assert!(
        unknown.complaint().contains("defualt") && unknown.complaint().contains(GOLDEN),
        "{unknown}"
    );
    assert_eq!(unknown.code(), 125);

    // The session's Docker daemon, for a program of this host.
    let script = "test -S \"${DOCKER_HOST#unix://}\" && echo $DOCKER_HOST; exit 4";
    let docker = run(&["--docker", "--", "sh", "-c", script]).run();
    let of_daemon = format!("/engines/{}-", daemon.pid());
    assert!(docker.code() == 4 && docker.stdout.contains(&of_daemon), "{docker}");
    assert_eq!(sessions(home), Vec::<String>::new());

    // In use it is one of the daemon's, until its command line is stopped, or gone without a word.
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGKILL, 137)] {
        let mut running = run(&["--", "sh", "-c", "echo up; exec sleep 1000"]).start();
        running.until("the session", |running| running.stdout().contains("up").then_some(()));
        assert_eq!(sessions(home).len(), 1);
        running.signal(signal);
        let ended = running.wait();
        assert_eq!(ended.code(), code, "{ended}");
        assert_eq!(program::settle(|| sessions(home), Vec::is_empty), Vec::<String>::new());
    }
    let mut own = run(&["--no-daemon", "--", "sh", "-c", "echo up; read line"]).start();
    own.until("a session of its own", |running| running.stdout().contains("up").then_some(()));
    assert_eq!(sessions(home), Vec::<String>::new());
    own.signal(Signal::SIGTERM);
    let own = own.wait();
    assert_eq!(home.leaks_of(own.pid), []);

    let mut shell = on_terminal(home, &["shell", GOLDEN, "--", "/bin/sh"]);
    let before = shell.settings();
    shell.until("# ");
    assert_eq!(sessions(home).len(), 1);
    shell.type_in("tty; stty size; echo $TERM-$((6 * 7)); exit 3\r");
    let (code, screen) = shell.wait();
    assert_eq!(code, Some(3), "{screen:?}");
    let shown = ["/dev/pts/", "33 77\r\n", "vt100-42\r\n"];
    assert!(shown.iter().all(|text| screen.contains(text)), "{screen:?}");
    assert_eq!(shell.settings().local_flags, before.local_flags);
    assert_eq!(sessions(home), Vec::<String>::new());
    daemon.stop();
}

#[test]
fn sessions_are_started_listed_used_copied_to_and_killed_from_the_command_line() {
    let _all = slots::take(slots::ALL);
    let daemon = Daemon::aside(SMALL_POOL);
    let home = daemon.home();
    let started = home
        .mayfly(["start", GOLDEN, "-e", "OWN=7", "--metadata", "run=a b", "--ttl", "30min"])
        .run();
    assert!(started.success(), "{started}");
    let id = started.stdout.trim_end();
    assert_eq!(sessions(home), [id]);
    let table = home.mayfly(["ps"]).run();
    let row = table.stdout.lines().nth(1).unwrap_or_default();
    assert!(row.starts_with(id) && row.ends_with("run=a b") && row.contains("running"), "{table}");

    let exec = |args: &[&str]| home.mayfly(["exec"].into_iter().chain(args.iter().copied()));
    let ended =
        exec(&["-i", id, "-w", "/usr", "--", "sh", "-c", "cat; echo \"$OWN $(pwd)\"; exit 9"])
            .stdin("in ")
            .run();
    assert_eq!((ended.code(), &*ended.stdout), (9, "in 7 /usr\n"), "{ended}");
    // Without -i nothing is read.
    let ended = exec(&[id, "-u", "nobody", "--", "sh", "-c", "cat; id -un"]).stdin("in ").run();
    assert_eq!((ended.code(), &*ended.stdout), (0, "nobody\n"), "{ended}");
    assert_eq!(exec(&[id, "--", "no-such-program"]).run().code(), 127);
    let mut terminal = on_terminal(
        home,
        &["exec", "-it", id, "--", "sh", "-c", "stty size; read line; exit $line"],
    );
    terminal.until("33 77");
    terminal.type_in("6\r");
    assert_eq!(terminal.wait().0, Some(6));
    // Stopped, it takes its command along, but not the session.
    let mut running = exec(&[id, "--", "sh", "-c", "echo up; exec sleep 7777"]).start();
    running.until("the command", |running| running.stdout().contains("up").then_some(()));
    running.signal(Signal::SIGKILL);
    running.wait();
    let count = || exec(&[id, "--", "sh", "-c", "pgrep -fx 'sleep 7777' | wc -l"]).run().stdout;
    assert_eq!(program::settle(count, |count| count == "0\n"), "0\n");

    copies(home, id);

    assert!(exec(&[id, "--", "sh", "-c", "echo seen-$((6 * 7)) >/dev/console"]).run().success());
    let logs =
        program::settle(|| home.mayfly(["logs", id]).run(), |logs| logs.stdout.contains("seen-42"));
    assert!(logs.success() && logs.stdout.contains("seen-42"), "{logs}");
    let status = home.mayfly(["--json", "status"]).run();
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!((&status["sessions"], &status["queued"]), (&1.into(), &0.into()));
    let status = home.mayfly(["status"]).run();
    assert!(status.stdout.contains("1 session,") && status.stdout.contains(GOLDEN), "{status}");

    let killed = home.mayfly(["kill", id]).run();
    assert_eq!((killed.code(), killed.stdout.trim_end()), (0, id), "{killed}");
    assert_eq!(sessions(home), Vec::<String>::new());
    // All of it says in one line that the session is over, or was never there.
    let is_over = |ended: Finished, code| {
        assert!(ended.code() == code && ended.complaint().contains("is over"), "{ended}");
    };
    is_over(home.mayfly(["kill", id]).run(), 1);
    is_over(home.mayfly(["logs", id]).run(), 1);
    is_over(home.mayfly(["cp", &format!("{id}:/etc/passwd"), "/nonexistent/x"]).run(), 1);
    is_over(exec(&[id, "--", "true"]).run(), 125);
    let unknown = home.mayfly(["kill", "0000000000000000"]).run();
    assert!(unknown.complaint().contains("no session"), "{unknown}");
    daemon.stop();
}

fn copies(home: &Home, id: &str) {
    let dir = tempfile::Builder::new().prefix("mayfly-chaos-").tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    // More than a pipe holds.
    fs::write(tree.join("sub/big"), "0123456789abcdef".repeat(1 << 16)).unwrap();
    fs::write(tree.join("tool"), "#!/bin/sh\necho works\n").unwrap();
    fs::set_permissions(tree.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("sub/big", tree.join("link")).unwrap();
    let copy = |from: &str, to: &str| home.mayfly(["cp", from, to]).run();
    let done = |ended: Finished| {
        assert!(ended.success() && ended.stdout.is_empty() && ended.stderr.is_empty(), "{ended}");
    };
    let (host, name) = (
        |name: &str| dir.path().join(name).display().to_string(),
        |path: &str| format!("{id}:{path}"),
    );

    // Below a folder that is there, and under a new name.
    done(copy(&host("tree"), &name("/root")));
    done(copy(&host("tree"), &name("/root/new")));
    let script = "diff -r /root/tree /root/new && /root/new/tool && readlink /root/tree/link && stat -c %U /root/tree";
    let seen = home.mayfly(["exec", id, "--", "sh", "-c", script]).run();
    assert_eq!(seen.stdout, "works\nsub/big\nroot\n", "{seen}");

    done(copy(&name("/root/new"), &host("back")));
    for file in ["sub/big", "tool", "link"] {
        assert!(
            fs::read(dir.path().join("back").join(file)).unwrap()
                == fs::read(tree.join(file)).unwrap(),
            "{file}"
        );
    }
    assert_eq!(fs::read_link(dir.path().join("back/link")).unwrap().to_str(), Some("sub/big"));
    assert_eq!(
        fs::metadata(dir.path().join("back/tool")).unwrap().permissions().mode() & 0o777,
        0o755
    );
    done(copy(&name("/root/new/tool"), &host("back/sub")));
    assert!(dir.path().join("back/sub/tool").is_file());

    for (from, to, words) in [
        (name("/root/nothing"), host("x"), "nothing"),
        (host("nothing"), name("/root"), "nothing"),
        (host("tree"), name("/no/such/folder"), "/no/such"),
        (host("tree"), host("x"), "ID:PATH"),
        (name("root"), host("x"), "absolute"),
        (name("/root/tree"), host("no/such/x"), "no/such/x"),
    ] {
        let failed = copy(&from, &to);
        assert!(failed.code() == 1 && failed.complaint().contains(words), "{from} {to}: {failed}");
    }
    let mut left: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["back", "tree"], "a failed copy leaves something");
}

#[test]
fn without_a_daemon_its_commands_say_how_to_start_one() {
    let home = Home::empty();
    for args in [
        ["ps"].as_slice(),
        &["status"],
        &["start", GOLDEN],
        &["logs", "x"],
        &["kill", "x"],
        &["cp", "x:/etc", "y"],
        &["exec", "x", "--", "true"],
    ] {
        let ended = home.mayfly(args.iter().copied()).run();
        assert!(
            ended.complaint().contains("mayfly serve") && ended.complaint().contains("mayfly.sock"),
            "{ended}"
        );
    }
}

/// Ids of the daemon's sessions, by `mayfly ps`.
fn sessions(home: &Home) -> Vec<String> {
    let listed = home.mayfly(["--json", "ps"]).run();
    assert!(listed.success(), "{listed}");
    let sessions: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap();
    sessions.iter().map(|session| session["id"].as_str().unwrap().to_owned()).collect()
}

fn on_terminal(home: &Home, args: &[&str]) -> OnTerminal {
    let mut command = Command::new(program_path());
    command.args(args).env("TERM", "vt100");
    command.env("MAYFLY_HOME", home.layout().home()).env("MAYFLY_RUN", home.layout().run());
    OnTerminal::start(command, 33, 77)
}
