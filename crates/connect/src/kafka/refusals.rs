//! Which events can never be published as they are, as far as is known before they are.

use headwater_core::ports::Rejection;
use headwater_core::{Error, Event, Kind, Result};

use super::topics::Topic;
use super::{Shared, record};

impl Shared {
    /// Which events can never be published as they are.
    pub(super) fn rejections(&self, events: &[Event]) -> Result<Vec<Rejection>> {
        let mut rejections = Vec::new();
        let mut last: Option<(&str, Topic)> = None;
        for (index, event) in events.iter().enumerate() {
            if last.as_ref().is_none_or(|(stream, _)| *stream != &*event.stream) {
                let topic = self.topic(&event.stream)?;
                last = Some((&event.stream, topic));
            }
            let Some((_, topic)) = &last else { continue };
            if let Some(reason) = record::impossible(event, topic).or_else(|| self.too_large(event, topic)) {
                rejections.push(Rejection { index, reason });
            }
        }
        Ok(rejections)
    }

    fn topic(&self, stream: &str) -> Result<Topic> {
        let unknown =
            || Error::new(Kind::Internal, format!("stream {stream} was not ensured before publishing"));
        let topic = self.topics.get(stream).ok_or_else(unknown)?;
        match &topic.wrong {
            // The source opens again; ensuring the stream says what is wrong.
            Some(wrong) => Err(Error::new(Kind::Unavailable, wrong.clone())),
            None => Ok(topic),
        }
    }

    fn too_large(&self, event: &Event, topic: &Topic) -> Option<String> {
        let (size, name) = (record::size(event), &topic.name);
        let client = self.config.max_message_bytes;
        if size > client as usize {
            return Some(format!(
                "the event has {size} bytes, `max_message_bytes` allows {client}: raise it, and max.message.bytes of \
                 topic {name} where that is lower"
            ));
        }
        let raise = format!(
            "raise its max.message.bytes (kafka-configs.sh --alter --topic {name} --add-config max.message.bytes={})",
            size.next_multiple_of(1 << 20)
        );
        if let Some(limit) = topic.limit.filter(|limit| size > *limit as usize) {
            return Some(format!("the event has {size} bytes, topic {name} allows {limit}: {raise}"));
        }
        let refused = topic.refused.filter(|refused| size >= *refused)?;
        Some(format!(
            "the event has {size} bytes, and the brokers refused one of {refused} as too large for topic {name}: \
             {raise}, and start Headwater again"
        ))
    }
}
