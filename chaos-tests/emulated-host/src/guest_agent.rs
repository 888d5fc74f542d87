//! The QEMU guest agent of the emulated host: runs programs and moves files over a virtio port of
//! its own, so that neither a network nor a login is needed. Commands: QEMU
//! `docs/interop/qemu-ga-ref.rst`.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::json_lines::{JsonLines, NoAnswer};

/// Bytes that one read or write moves.
const CHUNK: usize = 256 << 10;
/// How often a booting host is asked again.
const SYNC_INTERVAL: Duration = Duration::from_secs(2);

/// A connection to the agent.
#[derive(Debug)]
pub struct GuestAgent<'a> {
    lines: JsonLines<'a>,
    limit: Duration,
}

/// End of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Exit with this code.
    Code(i64),
    /// End by this signal.
    Signal(i64),
}

impl<'a> GuestAgent<'a> {
    /// Creates an agent over `lines`. Each single answer has `limit`.
    pub fn new(lines: JsonLines<'a>, limit: Duration) -> Self {
        Self { lines, limit }
    }

    /// Waits until the agent answers, at most for `limit`; `alive` says whether there is hope.
    ///
    /// # Errors
    /// No answer.
    pub fn wait(
        &mut self,
        limit: Duration,
        mut alive: impl FnMut() -> bool,
    ) -> Result<(), NoAnswer> {
        let begun = Instant::now();
        for id in 1.. {
            let deadline = Instant::now() + SYNC_INTERVAL;
            // 0xff makes the agent's parser begin anew.
            let message = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
            let answered = self.lines.send(b"\xff", &message, deadline).and_then(|()| {
                // Earlier questions of a booting host are answered late, all at once.
                while self.lines.receive(deadline)?["return"] != id {}
                Ok(())
            });
            match answered {
                Err(NoAnswer::TimedOut) if begun.elapsed() < limit && alive() => {}
                Err(NoAnswer::TimedOut) if !alive() => return Err(NoAnswer::Closed),
                other => return other,
            }
        }
        Ok(())
    }

    /// Starts a program and returns its id. Its output is kept by nobody.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub fn start(&mut self, path: &str, arguments: &[&str]) -> Result<i64, NoAnswer> {
        let arguments = json!({ "path": path, "arg": arguments, "capture-output": false });
        let answer = self.ask("guest-exec", &arguments)?;
        Ok(answer["pid"].as_i64().unwrap_or_default())
    }

    /// Returns how a started program ended; `None` while it runs. Its end is told once.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub fn exit(&mut self, pid: i64) -> Result<Option<Exit>, NoAnswer> {
        let answer = self.ask("guest-exec-status", &json!({ "pid": pid }))?;
        if answer["exited"] != true {
            return Ok(None);
        }
        let signal = answer["signal"].as_i64().map(Exit::Signal);
        Ok(Some(
            signal.unwrap_or_else(|| Exit::Code(answer["exitcode"].as_i64().unwrap_or_default())),
        ))
    }

    /// Writes a file.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub fn write(&mut self, path: &str, bytes: &[u8]) -> Result<(), NoAnswer> {
        let handle = self.ask("guest-file-open", &json!({ "path": path, "mode": "w" }))?;
        let written = bytes.chunks(CHUNK).try_for_each(|chunk| {
            let arguments = json!({ "handle": handle, "buf-b64": BASE64.encode(chunk) });
            self.ask("guest-file-write", &arguments).map(|_| ())
        });
        self.ask("guest-file-close", &json!({ "handle": handle }))?;
        written
    }

    /// Opens a file to be followed with [`more`](Self::more).
    ///
    /// # Errors
    /// No answer, or a refusal: it is not there.
    pub fn open(&mut self, path: &str) -> Result<Followed, NoAnswer> {
        let handle = self.ask("guest-file-open", &json!({ "path": path, "mode": "r" }))?;
        Ok(Followed { handle, at: 0 })
    }

    /// Reads what a file has got since it was last asked for, at most 256 KiB.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub fn more(&mut self, file: &mut Followed) -> Result<Vec<u8>, NoAnswer> {
        // The agent reads with stdio, which takes the end of a file for good until it is told to
        // seek.
        self.ask(
            "guest-file-seek",
            &json!({ "handle": file.handle, "offset": file.at, "whence": "set" }),
        )?;
        let answer =
            self.ask("guest-file-read", &json!({ "handle": file.handle, "count": CHUNK }))?;
        let bytes = answer["buf-b64"]
            .as_str()
            .and_then(|text| BASE64.decode(text).ok())
            .unwrap_or_default();
        file.at += bytes.len() as u64;
        Ok(bytes)
    }

    /// Closes a followed file.
    ///
    /// # Errors
    /// No answer, or a refusal.
    #[expect(clippy::needless_pass_by_value, reason = "nothing is read from it afterwards")]
    pub fn close(&mut self, file: Followed) -> Result<(), NoAnswer> {
        self.ask("guest-file-close", &json!({ "handle": file.handle })).map(|_| ())
    }

    /// Sends one command, and returns its answer.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, NoAnswer> {
        self.lines.ask(command, arguments, self.limit)
    }

    /// Asks for something that is not answered when it succeeds.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn tell(&mut self, command: &str, arguments: &Value) -> Result<(), NoAnswer> {
        let message = json!({ "execute": command, "arguments": arguments });
        self.lines.send(&[], &message, Instant::now() + self.limit)
    }
}

/// A file that grows while it is read.
#[derive(Debug)]
pub struct Followed {
    handle: Value,
    at: u64,
}
