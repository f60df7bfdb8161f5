//! `headwater init`: what a service's database needs.

use std::path::PathBuf;

use headwater_connect::postgres::url::ConnectOptions;
use headwater_connect::settings::Outbox;
use headwater_connect::{postgres, sqlite};
use headwater_core::{Error, Kind, Result};
use serde_json::json;

use crate::args::InitArgs;
use crate::output;

/// Prepares the database, or takes that back.
pub async fn init(args: &InitArgs) -> Result<u8> {
    let kind = args.url.split(':').next().unwrap_or_default();
    let done = match kind {
        "sqlite" => on_sqlite(args).await?,
        "postgres" | "postgresql" => on_postgres(args).await?,
        _ => {
            return Err(Error::new(Kind::Config, "this is not the URL of a database that Headwater knows")
                .hint("write sqlite:///path/to/file.db or postgres://user@host/database"));
        }
    };
    match done {
        Done::Sql(sql) => output::line(sql.trim_end())?,
        Done::Lines(lines) if args.json => output::json(&json!({ "done": lines }))?,
        Done::Lines(lines) if lines.is_empty() => output::line("nothing to do: all is there")?,
        Done::Lines(lines) => lines.iter().try_for_each(output::line)?,
    }
    Ok(0)
}

/// What became of it.
enum Done {
    /// The SQL that would be run.
    Sql(String),
    /// A line for each thing that was done.
    Lines(Vec<String>),
}

async fn on_sqlite(args: &InitArgs) -> Result<Done> {
    let path: PathBuf = sqlite::file_of(&args.url);
    let outbox = (!args.no_outbox).then(|| Outbox::new(args.outbox.clone()));
    let (tables, print, remove) = (args.tables.clone(), args.print, args.remove);
    let work = move || match (remove, print) {
        (true, true) => sqlite::removal_script(&path, &tables).map(Done::Sql),
        (true, false) => sqlite::remove(&path, &tables).map(Done::Lines),
        (false, true) => sqlite::script(&path, &tables, outbox.as_ref()).map(Done::Sql),
        (false, false) => sqlite::install(&path, &tables, outbox.as_ref()).map(Done::Lines),
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::new(Kind::Internal, "preparing the database").because(error))?
}

async fn on_postgres(args: &InitArgs) -> Result<Done> {
    let wrong = |text: &str, hint: &str| Err(Error::new(Kind::Config, text).hint(hint));
    if args.remove {
        return wrong(
            "on PostgreSQL there are no triggers to remove",
            "the outbox table is yours: DROP TABLE it when no service writes to it any more. What `headwater run` \
             made goes with SELECT pg_drop_replication_slot('headwater_SOURCE') and DROP PUBLICATION headwater_SOURCE",
        );
    }
    if !args.tables.is_empty() {
        return wrong(
            "on PostgreSQL tables need no preparation: they are captured from the log",
            "leave out --tables, and name them in the config",
        );
    }
    if args.no_outbox {
        return Ok(Done::Lines(Vec::new()));
    }
    let url = ConnectOptions::parse(&args.url)?;
    if args.print {
        return Ok(Done::Sql(postgres::outbox::script(&args.outbox)));
    }
    let made = postgres::outbox::install(&url, &args.outbox).await?;
    Ok(Done::Lines(made.then(|| format!("made the outbox table {}", args.outbox)).into_iter().collect()))
}
