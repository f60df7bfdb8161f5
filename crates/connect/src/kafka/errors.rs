//! Kafka's errors, as Headwater's.

use headwater_core::{Error, Kind};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// An error of Kafka, with what was being done.
pub fn error(error: KafkaError, doing: impl Into<String>) -> Error {
    let kind = kind_of(&error);
    let wrapped = Error::new(kind, doing);
    let hint = error.rdkafka_error_code().and_then(hint_of);
    match hint {
        Some(hint) => wrapped.because(error).hint(hint),
        None => wrapped.because(error),
    }
}

fn kind_of(error: &KafkaError) -> Kind {
    match (error, error.rdkafka_error_code()) {
        (KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_), _) => Kind::Config,
        (_, Some(code)) => kind_of_code(code),
        _ => Kind::Unavailable,
    }
}

/// What no retry helps against is refused; everything else may pass.
pub fn kind_of_code(code: Code) -> Kind {
    match code {
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::SecurityDisabled
        | Code::PolicyViolation
        | Code::InvalidReplicationFactor
        | Code::InvalidTimestamp
        | Code::InvalidConfig
        | Code::InvalidTopic => Kind::Refused,
        Code::IllegalGeneration
        | Code::UnknownMemberId
        | Code::RebalanceInProgress
        | Code::AssignmentLost
        | Code::FencedInstanceId => Kind::Busy,
        _ => Kind::Unavailable,
    }
}

fn hint_of(code: Code) -> Option<&'static str> {
    match code {
        Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism => Some(
            "check `options`: security.protocol, sasl.mechanism, sasl.username and sasl.password must fit the \
             listener that `brokers` names",
        ),
        Code::AllBrokersDown | Code::BrokerTransportFailure | Code::OperationTimedOut | Code::Resolve => {
            Some(
                "is the cluster running, and can `brokers` and the addresses it advertises be reached from here?",
            )
        }
        Code::InvalidTimestamp => Some(
            "the brokers take no record whose time is far from theirs: compare the clocks of this machine, the \
             database and the brokers",
        ),
        _ => None,
    }
}
