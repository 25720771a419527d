//! Who tells silent hosts from a silent network.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::future::select_ok;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// So many servers that answered are remembered. That all of them fell silent by themselves is not to be believed.
const MOST: usize = 8;

/// The servers that answered last. At the end of a run only silent hosts may be left, one time-out after another; that
/// the network is down is believed if none of these can be reached any more either.
#[derive(Debug, Default)]
pub(crate) struct Witnesses {
    answered: Mutex<VecDeque<SocketAddr>>,
    /// Held while they are asked.
    asking: tokio::sync::Mutex<()>,
}

impl Witnesses {
    /// Remembers a server that answered.
    pub(crate) fn note(&self, server: SocketAddr) {
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered.retain(|&other| other != server);
        answered.push_back(server);
        if answered.len() > MOST {
            answered.pop_front();
        }
    }

    /// Waits until nobody else asks, and keeps others from it.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.asking.lock().await
    }

    /// Connects to all of them at once, and says nothing to any. Whether one can be reached, `None` where there are none.
    pub(crate) async fn ask(&self, limit: Duration) -> Option<bool> {
        let servers = self.answered.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if servers.is_empty() {
            return None;
        }
        let reached = servers.into_iter().map(|server| Box::pin(reached(server, limit)));
        Some(select_ok(reached).await.is_ok())
    }
}

/// Only what tells of no way to a server is silence: a refusal came over the network, and want of files or ports is this
/// process's own.
async fn reached(server: SocketAddr, limit: Duration) -> Result<(), ()> {
    use io::ErrorKind::{HostUnreachable, NetworkDown, NetworkUnreachable, TimedOut};
    match timeout(limit, TcpStream::connect(server)).await {
        Ok(Err(error)) if matches!(error.kind(), HostUnreachable | NetworkDown | NetworkUnreachable | TimedOut) => {
            Err(())
        }
        Ok(_) => Ok(()),
        Err(_) => Err(()),
    }
}
