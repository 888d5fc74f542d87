//! Bounds of a session, measured.

use super::daemon::start_daemon;
use crate::case::{Case, Context, Failure};
use crate::ensure;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "limit-memory",
        about: "A VMM over its memory bound is killed, and its neighbour is not",
        quick: true,
        run: memory,
        ..Case::USUAL
    },
    Case {
        name: "limit-cpu",
        about: "A session with half a processor does not get more",
        quick: true,
        run: cpu,
        ..Case::USUAL
    },
    Case {
        name: "limit-pids",
        about: "No more processes fit into a session's cgroup than its bound says",
        quick: true,
        run: pids,
        ..Case::USUAL
    },
    Case {
        name: "limit-io",
        about: "What a session with a bound on disk I/O writes comes to the disk no faster",
        run: io,
        ..Case::USUAL
    },
];

/// Bash functions: `create BODY` prints a session's id, `exec_in ID CMD` runs a shell command in
/// it, `group ID` prints the folder of its cgroup.
const SESSIONS: &str = r#"
create() { mf --json "$1" http://mayfly/v1/sessions | jq -r .id; }
exec_in() { jq -n --arg c "$2" '{argv: ["sh", "-c", $c]}' | mf --json @- "http://mayfly/v1/sessions/$1/exec"; }
group() { find /sys/fs/cgroup -type d -name "*$1*" | head -n 1; }
"#;

fn memory(context: &mut Context) -> Result<(), Failure> {
    start_daemon(context, "")?;
    let said = context.ok(&format!(
        r#"{SESSIONS}
        greedy=$(create '{{"golden":"default","limits":{{"memory_mib":320}}}}'); neighbour=$(create '{{"golden":"default"}}')
        exec_in "$greedy" 'head -c 700M /dev/zero >/dev/shm/fill' >&2 || :
        for i in $(seq 50); do mf "http://mayfly/v1/sessions/$greedy" >/run/emulated-host/greedy || break; sleep 0.2; done
        cat /run/emulated-host/greedy; echo
        exec_in "$neighbour" 'echo alive'
        journalctl --dmesg --boot --output=cat --grep 'Memory cgroup out of memory' | tail -n 1
        systemctl is-active mayfly-case"#
    ))?;
    ensure!(
        said.contains("Memory cgroup out of memory"),
        "the kernel should have killed it in its cgroup: {said}"
    );
    ensure!(
        said.contains("session_ended") || said.contains("ended"),
        "the session should have ended: {said}"
    );
    ensure!(said.contains("alive\\n"), "its neighbour should live: {said}");
    ensure!(said.trim_end().ends_with("active"), "the daemon should live: {said}");
    Ok(())
}

fn cpu(context: &mut Context) -> Result<(), Failure> {
    start_daemon(context, "")?;
    let said = context.ok(&format!(
        r#"{SESSIONS}
        usage() {{ sed -n 's/^usage_usec //p' "$1/cpu.stat"; date +%s%6N; }}
        measure() {{
            local id=$1 group
            exec_in "$id" 'nohup sh -c "while :; do :; done" >/dev/null 2>&1 & echo on' >&2
            group=$(group "$id"); sleep 2; usage "$group"; sleep 10; usage "$group"
        }}
        bound=$(create '{{"golden":"default","limits":{{"cpus":0.5}}}}'); measure "$bound"; mf -X DELETE "http://mayfly/v1/sessions/$bound"
        free=$(create '{{"golden":"default"}}'); measure "$free""#
    ))?;
    let numbers: Vec<f64> = said.lines().filter_map(|line| line.trim().parse().ok()).collect();
    let &[b0, bt0, b1, bt1, f0, ft0, f1, ft1] = &numbers[..] else {
        return Err(Failure::Failed(format!("eight numbers were expected: {said}")));
    };
    let (bound, free) = ((b1 - b0) / (bt1 - bt0), (f1 - f0) / (ft1 - ft0));
    context.note(&format!("{bound:.2} processors with a bound of 0.5, {free:.2} without"));
    ensure!((0.3..0.6).contains(&bound), "a bound of half a processor gave {bound:.2}");
    ensure!(
        free > bound * 1.3,
        "without a bound it should have been more: {free:.2} and {bound:.2}"
    );
    Ok(())
}

fn pids(context: &mut Context) -> Result<(), Failure> {
    start_daemon(context, "")?;
    let said = context.ok(&format!(
        r#"{SESSIONS}
        id=$(create '{{"golden":"default"}}'); group=$(group "$id")
        cat "$group/pids.max" "$group/pids.current"
        # A process moves in and forks until that is refused. It is quick, since the VMM gets no thread meanwhile.
        perl -e '
            open(my $procs, ">", "$ARGV[0]/cgroup.procs") or die; print $procs $$; close($procs) or die;
            my @children;
            while (defined(my $pid = fork)) {{ if ($pid == 0) {{ sleep 300; exit }} push @children, $pid }}
            open(my $current, "<", "$ARGV[0]/pids.current") or die; print <$current>;
            kill 9, @children; wait for @children;
        ' "$group"
        sed -n 's/^max //p' "$group/pids.events"
        exec_in "$id" 'echo alive' | jq -r .stdout"#
    ))?;
    let numbers: Vec<u64> = said.lines().filter_map(|line| line.trim().parse().ok()).collect();
    let &[max, before, full, refused] = &numbers[..] else {
        return Err(Failure::Failed(format!("four numbers were expected: {said}")));
    };
    ensure!(before >= 1 && before < max, "a session uses {before} of {max} already");
    ensure!(full <= max && refused > 0, "{full} processes of {max}, refused {refused} times");
    ensure!(said.contains("alive"), "the session should go on: {said}");
    Ok(())
}

/// A guest's writes go through the page cache of the host, so that what counts is when the disk has
/// them.
fn io(context: &mut Context) -> Result<(), Failure> {
    start_daemon(context, "")?;
    let said = context.ok(&format!(
        r#"{SESSIONS}
        measure() {{
            local group begun; group=$(group "$1"); sync; begun=$(date +%s%3N)
            exec_in "$1" 'dd if=/dev/urandom of=/root/x bs=1M count=48 oflag=direct' >&2; sync
            echo $(($(date +%s%3N) - begun)); grep -o 'wbytes=[0-9]*' "$group/io.stat" | awk -F= '{{ all += $2 }} END {{ print all }}' 
        }}
        bound=$(create '{{"golden":"default","limits":{{"io_mib_per_second":4}}}}'); cat "$(group "$bound")/io.max" >&2; measure "$bound"
        mf -X DELETE "http://mayfly/v1/sessions/$bound" >&2
        free=$(create '{{"golden":"default"}}'); measure "$free""#
    ))?;
    let numbers: Vec<f64> = said.lines().filter_map(|line| line.trim().parse().ok()).collect();
    let &[bound, bound_bytes, free, free_bytes] = &numbers[..] else {
        return Err(Failure::Failed(format!("two times, each with bytes, were expected: {said}")));
    };
    context.note(&format!(
        "48 MiB were on the disk after {bound} ms with a bound of 4 MiB/s, {free} ms without"
    ));
    let all = f64::from(48 << 20);
    ensure!(
        bound_bytes > all * 0.9 && free_bytes > all * 0.9,
        "they should count for the session: {said}"
    );
    ensure!(bound > 10_000.0, "48 MiB at 4 MiB/s take twelve seconds, not {bound} ms");
    ensure!(free < bound * 0.7, "without a bound it should be faster: {free} ms and {bound} ms");
    Ok(())
}
