//! What the server's error codes say, for every place that must tell one from another.

use async_nats::{
    error::Error as ClientError,
    jetstream::{
        self, ErrorCode,
        context::{PublishError, PublishErrorKind},
    },
};
use std::{
    error::Error,
    fmt::{Debug, Display},
};

fn source<Kind>(error: &ClientError<Kind>) -> Option<ErrorCode>
where
    Kind: Clone + Debug + Display + PartialEq,
{
    error.source()?.downcast_ref::<jetstream::Error>().map(jetstream::Error::error_code)
}

/// The expected sequence is not the last: one code on one replica, another with several, and the client knows the first alone.
pub(crate) fn wrong_sequence(error: &PublishError) -> bool {
    error.kind() == PublishErrorKind::WrongLastSequence
        || source(error) == Some(ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT)
}

/// JetStream is there, and the servers have no leader among them now.
pub(crate) fn unavailable(error: &jetstream::Error) -> bool {
    error.error_code() == ErrorCode::CLUSTER_NOT_AVAILABLE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(code: u64) -> jetstream::Error {
        serde_json::from_value(serde_json::json!({"code": 400, "err_code": code, "description": "d"})).unwrap()
    }

    fn refused(code: u64) -> PublishError {
        PublishError::with_source(PublishErrorKind::Other, told(code))
    }

    #[test]
    fn codes_are_found_wherever_the_client_keeps_them() {
        assert!(wrong_sequence(&refused(10_164)));
        assert!(wrong_sequence(&PublishError::with_source(PublishErrorKind::WrongLastSequence, told(10_071))));
        assert!(!wrong_sequence(&refused(10_077)));
        assert!(unavailable(&told(10_008)) && !unavailable(&told(10_039)));
    }
}
