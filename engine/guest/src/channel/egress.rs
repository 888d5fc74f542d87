//! Egress streams of the channel: clients of the guest's proxy port, and its DNS queries.

use super::client::{RequestStream, write_all};
use super::driver::{Driver, Lease};
use super::{Channel, ChannelError, GuestStream};
use futures::io::{ReadHalf, WriteHalf};
use mayfly_protocol::{
    DnsMessage, EgressPorts, FrameReader, MAX_DNS_MESSAGE, MuxStream, Request, decode_frame,
    encode_frame,
};
use tokio::task::coop;

impl Channel {
    /// Has the agent listen for proxy clients and DNS queries of the guest, until [`DnsQueries`] is
    /// dropped.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when it does already, or the ports are taken.
    pub async fn open_egress(&self) -> Result<GuestEgress, ChannelError> {
        let mut stream = self.send(&Request::Egress).await?;
        let ports = stream.reply::<EgressPorts>().await?;
        let RequestStream { reader, driver, lease } = stream;
        let (reader, writer) = reader.split();
        Ok(GuestEgress {
            ports,
            clients: ProxyClients { driver: driver.clone() },
            queries: DnsQueries { reader, driver: driver.clone(), _lease: lease },
            answers: DnsAnswers { writer, driver },
        })
    }
}

/// The guest's end of egress.
#[derive(Debug)]
pub struct GuestEgress {
    /// Ports on the guest's 127.0.0.1 on which the agent listens.
    pub ports: EgressPorts,
    /// Clients of its proxy port.
    pub clients: ProxyClients,
    /// DNS queries of the guest.
    pub queries: DnsQueries,
    /// Answers to them.
    pub answers: DnsAnswers,
}

/// Acceptor of clients of the guest's proxy port.
#[derive(Clone, Debug)]
pub struct ProxyClients {
    driver: Driver,
}

impl ProxyClients {
    /// Waits for the next client. Waits for one as long as there is egress; several may wait at a
    /// time. Cancel-safe.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] when the agent could not take it, or there is no egress any more.
    pub async fn accept(&self) -> Result<GuestStream, ChannelError> {
        GuestStream::connect(&self.driver, &Request::EgressAccept).await
    }
}

/// DNS queries of the guest. Dropping it ends its egress.
#[derive(Debug)]
pub struct DnsQueries {
    reader: FrameReader<ReadHalf<MuxStream>>,
    driver: Driver,
    _lease: Lease,
}

impl DnsQueries {
    /// Waits for the next query. Cancel-safe.
    ///
    /// # Errors
    /// [`ChannelError`]; nothing follows. [`ChannelError::Protocol`] for a message beyond
    /// [`MAX_DNS_MESSAGE`].
    pub async fn next(&mut self) -> Result<DnsMessage, ChannelError> {
        // As in `RequestStream::next`.
        coop::consume_budget().await;
        let payload = match self.reader.next().await {
            Ok(Some(payload)) => payload,
            Ok(None) => {
                return Err(self
                    .driver
                    .explain(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()));
            }
            Err(error) => return Err(self.driver.explain(error.into())),
        };
        let query: DnsMessage = decode_frame(&payload)?;
        if query.message.len() > MAX_DNS_MESSAGE {
            return Err(ChannelError::Protocol {
                reason: format!("a DNS query of {} bytes", query.message.len()),
            });
        }
        Ok(query)
    }
}

/// Sender of answers to DNS queries.
#[derive(Debug)]
pub struct DnsAnswers {
    writer: WriteHalf<MuxStream>,
    driver: Driver,
}

impl DnsAnswers {
    /// Sends an answer. When this is cancelled, the stream cannot be used any more.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub async fn send(&mut self, answer: &DnsMessage) -> Result<(), ChannelError> {
        write_all(&mut self.writer, &encode_frame(answer)?)
            .await
            .map_err(|error| self.driver.explain(error))
    }
}
