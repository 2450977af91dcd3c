//! Passes administrative requests on to the coordinator, from whoever got them.

use crate::{
    connect::{Bus, Reply},
    error::BusError,
};
use highwater_schemas::{ApiError, ErrorCode, api::Master, subjects};
use std::time::Duration;
use tokio::sync::watch;

/// DDL waits for appends and hosts, so it gets longer than queries.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(60);

impl Bus {
    /// Sends `hw.admin.<noun_verb>` to the coordinator. Ends with `no_coordinator` when there is none, when it does not answer,
    /// and when another one takes office before it has.
    pub async fn forward(
        &self,
        master: &mut watch::Receiver<Option<Master>>,
        noun_verb: &str,
        payload: Vec<u8>,
    ) -> Result<Reply, ApiError> {
        let Some(Master { node, term }) = master.borrow_and_update().clone() else {
            return Err(ApiError::new(ErrorCode::NoCoordinator, "no index manager coordinates at the moment"));
        };
        let subject = subjects::node(&node, &format!("admin.{noun_verb}"));
        let changed = async {
            while master.changed().await.is_ok() {
                if master.borrow().as_ref().is_some_and(|m| m.term != term) {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            reply = self.request(&subject, payload, ADMIN_TIMEOUT) => reply.map_err(|e| match e {
                BusError::Timeout { .. } => ApiError::new(
                    ErrorCode::Timeout,
                    format!("coordinator {node} did not answer in time; it may still do what was asked"),
                ),
                BusError::NoResponders { .. } => ApiError::new(
                    ErrorCode::NoCoordinator,
                    format!("coordinator {node} does not answer hw.admin.{noun_verb}"),
                ),
                e => ApiError::new(ErrorCode::NoCoordinator, e.to_string()),
            }),
            () = changed => Err(ApiError::new(
                ErrorCode::NoCoordinator,
                format!("coordinator {node} was replaced before it answered; look whether it did what was asked"),
            )),
        }
    }
}
