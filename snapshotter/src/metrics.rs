//! What an operator watches: numbers in Prometheus's text form, on a socket of their own.
//!
//! | metric | is |
//! |---|---|
//! | `hallmark_calls_total{call,code}` | calls answered, by gRPC code; a refusal is any code but `ok` |
//! | `hallmark_layers_packed_total` | layers made of blobs |
//! | `hallmark_packed_bytes_total` | bytes of their tars |
//! | `hallmark_packing_seconds_total` | time that took, the wait for a processor not counted |
//! | `hallmark_active_layers` | mounted layers now |
//!
//! Off unless `snapshotter.metrics` names an address: `127.0.0.1:9473`, say. Whoever can connect may read.
//!
//! Source: Prometheus text exposition format 0.0.4. One answer to any request, so no HTTP library.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// For a request to arrive and its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);

/// The numbers.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    calls: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    packed: AtomicU64,
    packed_bytes: AtomicU64,
    packing_millis: AtomicU64,
    active: AtomicU64,
}

impl Metrics {
    /// Counts an answer.
    pub(crate) fn answered(&self, call: &'static str, code: &'static str) {
        // a count is whole at each step
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let count = calls.entry((call, code)).or_default();
        *count = count.saturating_add(1);
    }

    /// Counts a layer that was packed.
    pub(crate) fn packed(&self, tar_len: u64, took: Duration) {
        self.packed.fetch_add(1, Ordering::Relaxed);
        self.packed_bytes.fetch_add(tar_len, Ordering::Relaxed);
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.packing_millis.fetch_add(millis, Ordering::Relaxed);
    }

    /// Notes how many layers are active.
    pub(crate) fn active(&self, layers: usize) {
        self.active.store(u64::try_from(layers).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// All of it as text.
    pub(crate) fn render(&self) -> String {
        let mut text = String::from("# TYPE hallmark_calls_total counter\n");
        for ((call, code), count) in
            self.calls.lock().unwrap_or_else(PoisonError::into_inner).iter()
        {
            line(
                &mut text,
                &format!("hallmark_calls_total{{call=\"{call}\",code=\"{code}\"}}"),
                count,
            );
        }
        let millis = self.packing_millis.load(Ordering::Relaxed);
        let seconds = format!("{}.{:03}", millis / 1000, millis % 1000);
        for (name, kind, value) in [
            ("layers_packed_total", "counter", self.packed.load(Ordering::Relaxed).to_string()),
            (
                "packed_bytes_total",
                "counter",
                self.packed_bytes.load(Ordering::Relaxed).to_string(),
            ),
            ("packing_seconds_total", "counter", seconds),
            ("active_layers", "gauge", self.active.load(Ordering::Relaxed).to_string()),
        ] {
            line(&mut text, &format!("# TYPE hallmark_{name}"), &kind);
            line(&mut text, &format!("hallmark_{name}"), &value);
        }
        text
    }
}

fn line(text: &mut String, name: &str, value: &dyn std::fmt::Display) {
    // writing to a text does not fail
    writeln!(text, "{name} {value}").unwrap_or_default();
}

/// Opens the socket; refused where the address is taken.
pub(crate) async fn listen(address: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("snapshotter.metrics: bind {address}"))
}

/// Answers every connection, one after the other: there is one reader, each fifteen seconds or so.
pub(crate) async fn serve(listener: TcpListener, metrics: &Metrics) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // out of descriptors: the next moment may be better
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, answer(stream, metrics)).await {
            tracing::debug!("metrics: {error}");
        }
    }
}

async fn answer(mut stream: TcpStream, metrics: &Metrics) -> std::io::Result<()> {
    let mut request = [0; 4096];
    let mut length = 0;
    while !request.get(..length).unwrap_or_default().ends_with(b"\r\n\r\n") {
        let rest = request.get_mut(length..).unwrap_or_default();
        match stream.read(rest).await? {
            // gone, or a request of more than that
            0 => return Ok(()),
            read => length += read,
        }
    }
    let text = metrics.render();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        text.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn numbers_are_served_to_whoever_asks_and_others_are_let_go() {
        let metrics = std::sync::Arc::new(Metrics::default());
        metrics.answered("prepare", "ok");
        metrics.answered("prepare", "ok");
        metrics.answered("apply", "failed precondition");
        metrics.packed(1000, Duration::from_millis(1500));
        metrics.active(3);
        let listener = listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = std::sync::Arc::clone(&metrics);
        tokio::spawn(async move { serve(listener, &served).await });
        let long = vec![b'x'; 5000];
        for request in [&b"GET /metrics HTTP/1.1\r\n\r\n"[..], b"", &long] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // the long one may be refused while it is sent
            stream.write_all(request).await.ok();
            stream.shutdown().await.ok();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.ok();
            assert_eq!(text.contains("200 OK"), request.starts_with(b"GET"), "{text}");
            for line in [
                "hallmark_calls_total{call=\"prepare\",code=\"ok\"} 2",
                "hallmark_calls_total{call=\"apply\",code=\"failed precondition\"} 1",
                "hallmark_layers_packed_total 1",
                "hallmark_packed_bytes_total 1000",
                "hallmark_packing_seconds_total 1.500",
                "# TYPE hallmark_active_layers gauge",
                "hallmark_active_layers 3",
            ] {
                assert_eq!(text.contains(line), request.starts_with(b"GET"), "{line}\n{text}");
            }
        }
    }
}
