//! What an operator asks of a source that may be running in another process: a small file,
//! `data_dir/requests/SOURCE.json`, written by `headwater snapshot` and read by the source.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use headwater_core::{Error, Kind, Result, ResultExt};
use serde::{Deserialize, Serialize};

/// A wish that tables be read anew: `{"id": "...", "tables": ["public.orders"]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// Tells this request from every other. A source keeps it in its checkpoint, so that a request is
    /// followed once even when the process dies before the file is gone.
    pub id: String,
    /// The tables, `schema.name`; empty means all that the source captures.
    pub tables: Vec<String>,
}

impl SnapshotRequest {
    /// A request for `tables` (none: all), with an id of its own.
    pub fn new(tables: Vec<String>) -> Self {
        Self { id: format!("{:016x}", rand::random::<u64>()), tables }
    }
}

/// Where the requests to one source lie. Calls touch the disk: not for async threads.
#[derive(Debug, Clone)]
pub struct Requests {
    path: PathBuf,
}

impl Requests {
    /// The place of the requests to `source`.
    pub fn new(data_dir: &Path, source: &str) -> Self {
        Self { path: data_dir.join("requests").join(format!("{source}.json")) }
    }

    /// Asks; a request that was not followed yet is replaced.
    pub fn write(&self, request: &SnapshotRequest) -> Result<()> {
        let doing = || format!("writing {}", self.path.display());
        let folder = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).doing(Kind::Unavailable, doing)?;
        let partial = self.path.with_extension("json.partial");
        let text = serde_json::to_vec(request).doing(Kind::Internal, doing)?;
        let mut file = std::fs::File::create(&partial).doing(Kind::Unavailable, doing)?;
        file.write_all(&text).and_then(|()| file.sync_all()).doing(Kind::Unavailable, doing)?;
        std::fs::rename(&partial, &self.path).doing(Kind::Unavailable, doing)
    }

    /// The request that waits to be followed.
    pub fn read(&self) -> Result<Option<SnapshotRequest>> {
        let doing = || format!("reading {}", self.path.display());
        match std::fs::read(&self.path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| {
                Error::new(Kind::Decode, doing()).because(error).hint("remove the file, then ask again")
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::new(Kind::Unavailable, doing()).because(error)),
        }
    }

    /// Forgets the request with this id: for when a checkpoint that names it is durable. One that was
    /// made since stays.
    pub fn done(&self, id: &str) -> Result<()> {
        if self.read()?.is_some_and(|request| request.id == id) {
            std::fs::remove_file(&self.path)
                .doing(Kind::Unavailable, || format!("removing {}", self.path.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_stays_until_it_is_done_and_a_newer_one_outlives_it() {
        let dir = tempfile::tempdir().unwrap();
        let requests = Requests::new(dir.path(), "orders");
        assert_eq!(requests.read().unwrap(), None);
        let first = SnapshotRequest::new(vec!["public.orders".into()]);
        let second = SnapshotRequest::new(Vec::new());
        requests.write(&first).unwrap();
        assert_eq!(requests.read().unwrap().as_ref(), Some(&first));
        requests.write(&second).unwrap();
        requests.done(&first.id).unwrap();
        assert_eq!(requests.read().unwrap().as_ref(), Some(&second));
        requests.done(&second.id).unwrap();
        assert_eq!(requests.read().unwrap(), None);
    }
}
