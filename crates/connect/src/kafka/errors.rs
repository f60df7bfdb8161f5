//! Kafka's errors, as Headwater's.

use headwater_core::{Error, Kind};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::KafkaConfig;

const LOGIN: &str = "check `options`: security.protocol, sasl.mechanism, sasl.username and sasl.password must fit \
                     the listener that `brokers` names";

const TRUST: &str =
    "set `ssl.ca.location` in `options` to the certificates of the authority that signed the brokers'";

const REACH: &str =
    "is the cluster running, and can `brokers` and the addresses it advertises be reached from here?";

/// An error of Kafka, with what was being done.
pub fn error(error: KafkaError, doing: impl Into<String>) -> Error {
    let kind = kind_of(&error);
    let wrapped = Error::new(kind, doing);
    // Its own words end with the option's value, which may be a secret under a mistyped name.
    if let KafkaError::ClientConfig(_, why, name, _) = &error {
        return wrapped.because(format!("{why} ({name})")).hint("look at `options` under [bus]");
    }
    let hint = error.rdkafka_error_code().and_then(hint_of);
    match hint {
        Some(hint) => wrapped.because(error).hint(hint),
        None => wrapped.because(error),
    }
}

/// An error of a question, with why the connection failed where that is all there is to say.
pub fn unanswered(error: KafkaError, failure: Option<String>, doing: String) -> Error {
    let no_connection = matches!(
        error.rdkafka_error_code(),
        Some(
            Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::OperationTimedOut
                | Code::RequestTimedOut
        )
    );
    match failure.filter(|_| no_connection) {
        Some(failure) if failure.contains("SASL") => {
            Error::new(Kind::Refused, doing).because(failure).hint(LOGIN)
        }
        Some(failure) if failure.contains("certificate") => {
            Error::new(Kind::Unavailable, doing).because(failure).hint(TRUST)
        }
        Some(failure) => Error::new(Kind::Unavailable, doing).because(failure).hint(REACH),
        None => self::error(error, doing),
    }
}

/// Why a record did not get into its topic.
pub fn undelivered(error: KafkaError, topic: &str) -> Error {
    let may_not = error.rdkafka_error_code() == Some(Code::TopicAuthorizationFailed);
    let error = self::error(error, format!("publishing to topic {topic}"));
    if !may_not {
        return error;
    }
    error.hint(format!("grant this user the right Write on topic {topic}, and start Headwater again"))
}

/// Why a topic cannot be read.
pub fn unread(error: KafkaError, topic: &str, doing: String) -> Error {
    let may_not = error.rdkafka_error_code() == Some(Code::TopicAuthorizationFailed);
    let error = self::error(error, doing);
    if may_not { error.hint(format!("grant this user the right Read on topic {topic}")) } else { error }
}

/// Why a source's transactions cannot begin.
pub fn not_begun(error: KafkaError, config: &KafkaConfig, source: &str) -> Error {
    let (id, code) = (config.transactional_id(source), error.rdkafka_error_code());
    let error = self::error(error, format!("opening the transactions of {source} (transactional id {id})"));
    match code {
        Some(Code::TransactionalIdAuthorizationFailed) => error.hint(format!(
            "grant this user the rights Describe and Write on the transactional id {id}: kafka-acls.sh --add \
             --allow-principal User:NAME --operation Describe --operation Write --transactional-id {id}"
        )),
        Some(Code::ClusterAuthorizationFailed) => {
            error.hint("grant this user the right IdempotentWrite on the cluster")
        }
        Some(Code::InvalidTransactionTimeout) => error.hint(format!(
            "the brokers' transaction.max.timeout.ms is less than `transaction_timeout`, {}: lower this one",
            humantime::format_duration(config.transaction_timeout())
        )),
        _ if error.kind() == Kind::Unavailable => error.hint(
            "are all brokers running? Their topic __transaction_state must have a leader, for which a small cluster \
             needs a lower transaction.state.log.replication.factor",
        ),
        _ => error,
    }
}

/// Why a transaction did not come to be.
pub fn not_committed(error: KafkaError, source: &str) -> Error {
    let may_not = error.rdkafka_error_code() == Some(Code::TopicAuthorizationFailed);
    let error = self::error(error, format!("publishing the events of {source} in a transaction"));
    if !may_not {
        return error;
    }
    error.hint("grant this user the right Write on the topics that it publishes to and on `positions_topic`")
}

/// What is said of a transaction whose commit nobody answers.
pub fn undecided(error: KafkaError, source: &str) -> Error {
    let what = format!("no broker says whether the last transaction of {source} is committed");
    Error::new(Kind::Unavailable, what).because(error).hint(REACH)
}

/// What a writer hears that is no longer the source's.
pub fn fenced(source: &str) -> Error {
    Error::new(Kind::Busy, format!("another writer of {source} was opened, here or in another process")).hint(
        "does another deployment run with the same `transactional_id` and a source of this name? If not, the brokers \
         ended a transaction that had stood open for longer than `transaction_timeout`",
    )
}

/// Whether it says that a writer is no longer the source's.
pub fn is_fence(code: Code) -> bool {
    matches!(code, Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch)
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
        | Code::TransactionalIdAuthorizationFailed
        | Code::InvalidTransactionTimeout
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
        code if is_fence(code) => Kind::Busy,
        _ => Kind::Unavailable,
    }
}

fn hint_of(code: Code) -> Option<&'static str> {
    match code {
        Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism => Some(LOGIN),
        Code::AllBrokersDown | Code::BrokerTransportFailure | Code::OperationTimedOut | Code::Resolve => {
            Some(REACH)
        }
        Code::InvalidRecord => Some(
            "the brokers hold this topic's records to rules that this one breaks, such as a schema: change the rule, or \
             give the stream another topic",
        ),
        Code::InvalidTimestamp => Some(
            "the brokers take no record whose time is far from theirs: compare the clocks of this machine, the \
             database and the brokers",
        ),
        _ => None,
    }
}
