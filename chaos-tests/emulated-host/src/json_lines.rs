//! Asks over a stream of JSON objects, one a line, as QMP (QEMU `docs/interop/qmp-spec.rst`) and
//! the QEMU guest agent (`docs/interop/qemu-ga.rst`) speak. One question at a time, each with a
//! bound.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Error, IoContext as _};

/// How often the end of a wait is looked for.
const TICK: Duration = Duration::from_millis(100);
/// Longest line. Answers with a file's content are the longest.
const MAX_LINE: usize = 8 << 20;
/// Events that are kept; older ones are dropped.
const MAX_EVENTS: usize = 64;

/// Reason why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// The other side has closed the stream.
    Closed,
    /// The answer takes too long.
    TimedOut,
    /// The connection failed otherwise.
    Error(Error),
}

/// Connection with one JSON document per line.
#[derive(Debug)]
pub struct JsonLines<'a> {
    stream: UnixStream,
    name: &'static str,
    unread: Vec<u8>,
    events: Vec<Value>,
    cancel: &'a AtomicBool,
}

impl<'a> JsonLines<'a> {
    /// Creates a connection over `stream`, which leads to what errors call `name`.
    ///
    /// # Errors
    /// The stream takes no bounds.
    pub fn new(
        stream: UnixStream,
        name: &'static str,
        cancel: &'a AtomicBool,
    ) -> Result<Self, Error> {
        stream.set_read_timeout(Some(TICK)).context("use the connection to", name.as_ref())?;
        stream.set_write_timeout(Some(TICK)).context("use the connection to", name.as_ref())?;
        Ok(Self { stream, name, unread: Vec::new(), events: Vec::new(), cancel })
    }

    /// Sends `command` and returns what it returns.
    ///
    /// # Errors
    /// No answer within `limit`, or a refusal, which is [`Error::Refused`].
    pub fn ask(
        &mut self,
        command: &str,
        arguments: &Value,
        limit: Duration,
    ) -> Result<Value, NoAnswer> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(NoAnswer::Error(Error::Interrupted));
        }
        let deadline = Instant::now() + limit;
        self.send(&[], &json!({ "execute": command, "arguments": arguments }), deadline)?;
        loop {
            let mut answer = self.receive(deadline)?;
            if let Some(error) = answer.get("error") {
                let reason = error["desc"].as_str().unwrap_or("no reason is given").to_owned();
                return Err(NoAnswer::Error(Error::Refused {
                    command: command.to_owned(),
                    reason,
                }));
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
            self.keep(answer);
        }
    }

    /// Sends a message after some raw bytes.
    ///
    /// # Errors
    /// It cannot be sent before `deadline`.
    pub fn send(
        &mut self,
        before: &[u8],
        message: &Value,
        deadline: Instant,
    ) -> Result<(), NoAnswer> {
        let line = [before, message.to_string().as_bytes(), b"\n"].concat();
        let mut rest = &line[..];
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) => self.after(error, deadline)?,
            }
        }
        Ok(())
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// There is none before `deadline`.
    pub fn receive(&mut self, deadline: Instant) -> Result<Value, NoAnswer> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                // A guest agent begins its answer to guest-sync-delimited with 0xff.
                let from = line.iter().rposition(|byte| *byte == 0xff).map_or(0, |at| at + 1);
                // What is no JSON is the rest of an answer that was cut off by an earlier
                // connection.
                match serde_json::from_slice(&line[from..]) {
                    Ok(message) => return Ok(message),
                    Err(_) => continue,
                }
            }
            if self.unread.len() > MAX_LINE {
                let reason = format!("a line is longer than {MAX_LINE} bytes");
                return Err(NoAnswer::Error(Error::Refused {
                    command: self.name.to_owned(),
                    reason,
                }));
            }
            let mut buffer = [0; 64 << 10];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(NoAnswer::Closed),
                Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
                Err(error) => self.after(error, deadline)?,
            }
        }
    }

    /// Takes in what has come without being asked for, and returns it.
    pub fn events(&mut self) -> &[Value] {
        while let Ok(event) = self.receive(Instant::now()) {
            self.keep(event);
        }
        &self.events
    }

    fn keep(&mut self, event: Value) {
        if self.events.len() == MAX_EVENTS {
            self.events.remove(0);
        }
        self.events.push(event);
    }

    fn after(&self, error: std::io::Error, deadline: Instant) -> Result<(), NoAnswer> {
        match error.kind() {
            _ if self.cancel.load(Ordering::Relaxed) => Err(NoAnswer::Error(Error::Interrupted)),
            ErrorKind::WouldBlock | ErrorKind::TimedOut if Instant::now() >= deadline => {
                Err(NoAnswer::TimedOut)
            }
            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(()),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Err(NoAnswer::Closed),
            _ => Err(error).context("talk to", self.name.as_ref()).map_err(NoAnswer::Error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_secs(60);
    static GO_ON: AtomicBool = AtomicBool::new(false);

    fn pair() -> (JsonLines<'static>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        (JsonLines::new(ours, "the test", &GO_ON).expect("a connection"), theirs)
    }

    #[test]
    fn an_answer_is_told_from_events_and_refusals() {
        let (mut lines, mut theirs) = pair();
        theirs
            .write_all(b"rest of a line}\n{\"event\":\"STOP\"}\n\xff{\"return\":{\"pid\":7}}\n")
            .expect("written");
        assert_eq!(lines.ask("x", &json!({}), LONG).expect("an answer")["pid"], 7);
        theirs
            .write_all(
                b"{\"error\":{\"class\":\"E\",\"desc\":\"not today\"}}\n{\"event\":\"RESET\"}\n",
            )
            .expect("written");
        let refused = lines.ask("x", &json!({}), LONG).expect_err("a refusal");
        assert!(
            matches!(refused, NoAnswer::Error(Error::Refused { reason, .. }) if reason == "not today")
        );
        let names: Vec<_> = lines.events().iter().map(|event| event["event"].clone()).collect();
        assert_eq!(names, ["STOP", "RESET"]);
    }

    #[test]
    fn a_silent_side_and_a_gone_side_are_told_apart() {
        let (mut lines, theirs) = pair();
        assert!(matches!(lines.ask("x", &json!({}), SHORT), Err(NoAnswer::TimedOut)));
        drop(theirs);
        assert!(matches!(lines.ask("x", &json!({}), LONG), Err(NoAnswer::Closed)));
    }
}
