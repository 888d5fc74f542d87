//! The native API.

use std::time::Instant;

use mayfly_api::{CreateSession, Exec};
use mayfly_client::Client;
use mayfly_guest::channel::ExecEvent;

use super::{Plan, Reason, check, command, rate};
use crate::error::BenchError;

const NAME: &str = "native API";

/// A client.
pub struct Native {
    client: Client,
    request: CreateSession,
    plan: Plan,
}

fn failed(error: impl Into<Reason>) -> BenchError {
    super::failed(NAME, error)
}

impl Native {
    pub fn new(address: &str, token: &str, plan: &Plan) -> Result<Self, BenchError> {
        let client = Client::tcp(address, token).map_err(failed)?;
        let request = CreateSession { golden: plan.golden.clone(), ..CreateSession::default() };
        Ok(Self { client, request, plan: plan.clone() })
    }

    pub async fn create(&self) -> Result<String, BenchError> {
        Ok(self.client.create(&self.request, None).await.map_err(failed)?.id)
    }

    pub async fn kill(&self, id: &str) -> Result<(), BenchError> {
        self.client.kill(id).await.map_err(failed)
    }

    /// Returns the MiB/s of a command's output, over a WebSocket.
    pub async fn output(&mut self, id: &str) -> Result<f64, BenchError> {
        let line = command(&self.plan);
        let begun = Instant::now();
        let exec = Exec::new(["bash", "-l", "-c", &line]);
        let mut running = self.client.run(id, &exec).await.map_err(failed)?;
        let mut bytes = 0;
        while let Some(event) = running.recv().await.map_err(failed)? {
            if let ExecEvent::Stdout(piece) = event {
                bytes += piece.len() as u64;
            }
        }
        let rate = rate(bytes, begun);
        check(NAME, bytes, &self.plan)?;
        Ok(rate)
    }
}
