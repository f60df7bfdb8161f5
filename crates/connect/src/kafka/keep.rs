//! The topic that keeps positions: making it, and whether it is as it has to be.

use std::collections::HashMap;
use std::error::Error as _;

use headwater_core::ports::Finding;
use headwater_core::{Error, Kind, Result};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::positions;
use super::topics::{Topics, blocking};

/// A segment of it: what is newer than the last that is full is not compacted. No smaller than what hosted clusters
/// allow.
const SEGMENT: u32 = 64 << 20;

const POLICY: &str = "cleanup.policy";
const SEGMENT_BYTES: &str = "segment.bytes";

/// How it is to be.
fn settings() -> [(&'static str, String); 2] {
    [(POLICY, "compact".to_owned()), (SEGMENT_BYTES, SEGMENT.to_string())]
}

/// Whether a cluster does not let whoever makes a topic say all of that, as hosted ones do.
fn is_unfit(error: &Error) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<KafkaError>());
    matches!(source, Some(KafkaError::AdminOp(Code::InvalidConfig | Code::PolicyViolation)))
}

impl Topics {
    /// Makes sure of the topic of positions: one partition that is compacted and never emptied.
    pub async fn ensure_positions(&self) -> Result<()> {
        let name = &self.config.positions_topic;
        let partitions = match self.make(name, 1, &settings()).await {
            Err(error) if is_unfit(&error) => {
                tracing::warn!(topic = name, %error, "made with its {POLICY} alone: what is newest is compacted late");
                self.make(name, 1, &settings()[..1]).await?
            }
            made => made?,
        };
        self.keeps(partitions, &self.describe(name).await?)
    }

    /// An error of kind `Refused` where it would not keep what is written there.
    fn keeps(&self, partitions: u32, described: &HashMap<String, String>) -> Result<()> {
        let name = &self.config.positions_topic;
        if partitions != 1 {
            let what =
                format!("topic {name}, which keeps how far sources have come, has {partitions} partitions");
            return Err(Error::new(Kind::Refused, what)
                .hint("it needs exactly one: name another topic with `positions_topic`"));
        }
        match described.get(POLICY) {
            Some(policy) if policy != "compact" => {
                let what = format!("topic {name} would lose how far sources have come: {POLICY} is {policy}");
                let alter = self.alter_command(name, &[&settings()[0]]);
                Err(Error::new(Kind::Refused, what).hint(format!("run: {alter}")))
            }
            _ => Ok(()),
        }
    }

    /// Says whether the topic of positions is as it has to be, changing nothing.
    pub async fn check_positions(&self) -> Result<Vec<Finding>> {
        let name = &self.config.positions_topic;
        let Some(partitions) = self.partitions(name).await? else {
            let options = self.options().validate_only(true);
            match self.create(name, 1, &settings(), &options).await {
                Err(error) if is_unfit(&error) => self.create(name, 1, &settings()[..1], &options).await?,
                made => made?,
            };
            return Ok(vec![Finding::ok(format!("topic {name}, for positions, is made by the first run"))]);
        };
        let described = self.describe(name).await?;
        self.keeps(partitions, &described)?;
        let (config, asker) = (self.config.clone(), self.asker());
        let known = blocking(move || positions::read_all(&config, &asker)).await?.len();
        let mut findings = vec![Finding::ok(format!("topic {name} keeps the positions of {known} sources"))];
        if described.is_empty() {
            findings.push(Finding::warning(
                format!("whether topic {name} is compacted cannot be known"),
                format!(
                    "grant this user the right DescribeConfigs on it, or see to it that {POLICY} is compact"
                ),
            ));
        }
        let segment = described.get(SEGMENT_BYTES).and_then(|bytes| bytes.parse::<u64>().ok());
        if let Some(bytes) = segment.filter(|bytes| *bytes > SEGMENT.into()) {
            let alter = self.alter_command(name, &[&settings()[1]]);
            findings.push(Finding::warning(
                format!("topic {name} grows to {bytes} bytes before it is compacted ({SEGMENT_BYTES})"),
                format!("`headwater status` reads all of it. Run: {alter}"),
            ));
        }
        Ok(findings)
    }
}
