//! Events to containerd, in the order they were published.
//!
//! One task forwards them one at a time. When containerd is away the queue waits for it, at most [`QUEUE`] events; after
//! that the newest are dropped and logged. An event that containerd itself refuses is logged and skipped.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::protobuf::well_known_types::{any::Any, timestamp::Timestamp};
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc;
use tokio::sync::{mpsc, watch};

use crate::error::{Error, Result};

/// Events kept while containerd is away.
const QUEUE: usize = 2048;
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// The metadata key in which ttrpc carries containerd's namespace.
const NAMESPACE_HEADER: &str = "containerd-namespace-ttrpc";

/// The publisher's end. Clones share one queue.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    namespace: Arc<str>,
    queue: mpsc::Sender<Envelope>,
    unsent: Arc<watch::Sender<usize>>,
}

impl Events {
    /// Starts the forwarding task for containerd's ttrpc socket at `address`.
    pub(crate) fn start(namespace: &str, address: String) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let unsent = Arc::new(watch::Sender::new(0));
        let mut forwarder = Forwarder {
            address,
            namespace: namespace.to_owned(),
            client: None,
            unsent: unsent.clone(),
        };
        tokio::spawn(async move { forwarder.run(waiting).await });
        Self { namespace: namespace.into(), queue, unsent }
    }

    /// Queues an event. Never waits: no request of containerd may hang on containerd's event service.
    pub(crate) fn publish<M: Message>(&self, topic: &'static str, event: &M) {
        let envelope = match self.envelope(topic, event) {
            Ok(envelope) => envelope,
            Err(error) => return log::error!("event {topic}: {}", error.chain()),
        };
        self.unsent.send_modify(|count| *count += 1);
        if self.queue.try_send(envelope).is_err() {
            self.unsent.send_modify(|count| *count -= 1);
            log::error!("event {topic} dropped: {QUEUE} events wait for containerd");
        }
    }

    /// Waits until containerd has every event, at most `limit`.
    pub(crate) async fn flush(&self, limit: Duration) {
        let mut unsent = self.unsent.subscribe();
        if tokio::time::timeout(limit, unsent.wait_for(|count| *count == 0)).await.is_err() {
            log::warn!("{} events not taken by containerd within {limit:?}", *self.unsent.borrow());
        }
    }

    fn envelope<M: Message>(&self, topic: &str, event: &M) -> Result<Envelope> {
        Ok(Envelope {
            timestamp: MessageField::some(timestamp(SystemTime::now())),
            namespace: self.namespace.to_string(),
            topic: topic.to_owned(),
            event: MessageField::some(pack("containerd.events", event)?),
            ..Envelope::default()
        })
    }
}

/// A message as containerd's typeurl package packs it: its name after its protobuf package's, no host before them. The package
/// is told here because asking the message for it would build protobuf's reflection tables, half a megabyte in every shim.
///
/// # Errors
/// The message cannot be encoded.
pub(crate) fn pack<M: Message>(package: &str, message: &M) -> Result<Any> {
    Ok(Any {
        type_url: format!("{package}.{}", M::NAME),
        value: message.write_to_bytes().map_err(Error::decode("encode message"))?,
        ..Any::default()
    })
}

/// A point in time as protobuf tells it. Before 1970 is 1970.
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        ..Timestamp::default()
    }
}

struct Forwarder {
    address: String,
    namespace: String,
    client: Option<EventsClient>,
    unsent: Arc<watch::Sender<usize>>,
}

impl Forwarder {
    async fn run(&mut self, mut waiting: mpsc::Receiver<Envelope>) {
        while let Some(envelope) = waiting.recv().await {
            self.deliver(envelope).await;
            self.unsent.send_modify(|count| *count -= 1);
        }
    }

    /// Tries until containerd has answered, for or against.
    async fn deliver(&mut self, envelope: Envelope) {
        let topic = envelope.topic.clone();
        let request =
            ForwardRequest { envelope: MessageField::some(envelope), ..ForwardRequest::default() };
        let mut pause = Duration::from_millis(50);
        loop {
            match self.forward(&request).await {
                Ok(()) => return,
                Err(ttrpc::Error::RpcStatus(status)) => {
                    return log::error!("event {topic}: containerd: {}", status.message);
                }
                Err(error) => log::debug!("event {topic}: {error}, next try in {pause:?}"),
            }
            self.client = None;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn forward(&mut self, request: &ForwardRequest) -> ttrpc::Result<()> {
        let client = match &self.client {
            Some(client) => client,
            None => {
                let address = self.address.strip_prefix("unix://").unwrap_or(&self.address);
                let client = Client::connect(&format!("unix://{address}")).await?;
                self.client.insert(EventsClient::new(client))
            }
        };
        let mut context = ttrpc::context::with_duration(CALL_TIMEOUT);
        context.set(NAMESPACE_HEADER.to_owned(), vec![self.namespace.clone()]);
        client.forward(context, request).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::api::Empty;
    use containerd_shim_protos::events::task::TaskStart;
    use containerd_shim_protos::shim_async::{Events as EventsService, create_events};
    use std::sync::Mutex;

    #[derive(Default)]
    struct Daemon(Mutex<Vec<(String, String)>>);

    #[async_trait::async_trait]
    impl EventsService for Daemon {
        async fn forward(
            &self,
            context: &ttrpc::r#async::TtrpcContext,
            request: ForwardRequest,
        ) -> ttrpc::Result<Empty> {
            let namespace = context.metadata[NAMESPACE_HEADER].join(",");
            let envelope = request.envelope.unwrap();
            crate::sync::lock(&self.0).push((namespace, envelope.event.type_url.clone()));
            match envelope.topic.as_str() {
                "/refused" => Err(ttrpc::Error::RpcStatus(ttrpc::get_status(
                    ttrpc::Code::INVALID_ARGUMENT,
                    "no",
                ))),
                _ => Ok(Empty::default()),
            }
        }
    }

    /// containerd comes up after the first event, and refuses one of three.
    #[tokio::test]
    async fn events_wait_for_containerd_and_keep_their_order() {
        let directory = tempfile::tempdir().unwrap();
        let address = format!("unix://{}/events.sock", directory.path().display());
        let events = Events::start("k8s.io", address.clone());
        events.publish("/tasks/start", &TaskStart::default());
        events.publish("/refused", &TaskStart::default());
        events.flush(Duration::from_millis(20)).await;
        assert_eq!(*events.unsent.borrow(), 2);

        let daemon = Arc::new(Daemon::default());
        let service = create_events(daemon.clone());
        let mut server =
            ttrpc::r#async::Server::new().bind(&address).unwrap().register_service(service);
        server.start().await.unwrap();
        events.publish("/tasks/exit", &containerd_shim_protos::events::task::TaskExit::default());
        events.flush(Duration::from_secs(5)).await;
        let seen = crate::sync::lock(&daemon.0).clone();
        let expected = ["TaskStart", "TaskStart", "TaskExit"]
            .map(|name| ("k8s.io".to_owned(), format!("containerd.events.{name}")));
        assert_eq!(seen, expected);
    }
}
