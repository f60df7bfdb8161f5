//! `headwater init`: what a service's database needs.

use std::path::PathBuf;

use headwater_connect::settings::Outbox;
use headwater_connect::{mysql, postgres, sqlite};
use headwater_core::ports::Finding;
use headwater_core::{Error, Kind, Result};
use serde_json::json;

use crate::args::InitArgs;
use crate::output;

/// Prepares the database, or takes that back.
pub async fn init(args: &InitArgs) -> Result<u8> {
    let kind = args.url.split(':').next().unwrap_or_default();
    if args.inbox_schema != PUBLIC && !kind.starts_with("postgres") {
        return Err(Error::new(Kind::Config, "an inbox is in a schema of its own on PostgreSQL only")
            .hint("leave out --inbox-schema: its tables are in the database of the URL"));
    }
    let done = match kind {
        "sqlite" => on_sqlite(args).await?,
        "postgres" | "postgresql" => on_postgres(args).await?,
        "mysql" | "mariadb" => on_mysql(args).await?,
        _ => {
            return Err(Error::new(Kind::Config, "this is not the URL of a database that Headwater knows")
                .hint("write sqlite:///path/to/file.db, postgres://user@host/database or mysql://user@host/database"));
        }
    };
    match done {
        Done::Sql(sql) => output::line(sql.trim_end())?,
        Done::Lines(lines, mend) if args.json => output::json(&json!({ "done": lines, "findings": mend }))?,
        Done::Lines(lines, mend) => {
            if lines.is_empty() && mend.is_empty() {
                output::line("nothing to do: all is there")?;
            }
            lines.iter().try_for_each(output::line)?;
            mend.iter().try_for_each(|finding| {
                output::line(&finding.message)?;
                finding.hint.iter().try_for_each(output::line)
            })?;
        }
    }
    Ok(0)
}

/// The schema that goes without saying.
const PUBLIC: &str = "public";

/// What is said when they were made.
const INBOX: &str = "made the tables of the inbox: headwater_inbox, headwater_cursor, headwater_parked";

/// What became of it.
enum Done {
    /// The SQL that would be run.
    Sql(String),
    /// A line for each thing that was done, and what is there and not as it should be.
    Lines(Vec<String>, Vec<Finding>),
}

impl Done {
    fn lines(lines: Vec<String>) -> Self {
        Self::Lines(lines, Vec::new())
    }
}

async fn on_sqlite(args: &InitArgs) -> Result<Done> {
    let path: PathBuf = sqlite::file_of(&args.url);
    let outbox = (!args.no_outbox).then(|| Outbox::new(args.outbox.clone()));
    // Without tables nothing is captured, and the outbox is for a relay.
    let relayed = if args.tables.is_empty() { outbox.clone() } else { None };
    let (tables, print, remove, inbox) = (args.tables.clone(), args.print, args.remove, args.inbox);
    let work = move || match (remove, print) {
        (true, true) => sqlite::removal_script(&path, &tables).map(Done::Sql),
        (true, false) => sqlite::remove(&path, &tables).map(Done::lines),
        (false, true) => {
            let script = match relayed {
                Some(outbox) => sqlite::outbox::script(&outbox.table),
                None if tables.is_empty() => String::new(),
                None => sqlite::script(&path, &tables, outbox.as_ref())?,
            };
            Ok(Done::Sql(script + if inbox { sqlite::inbox::SCRIPT } else { "" }))
        }
        (false, false) => {
            let mut lines = match relayed {
                Some(outbox) => {
                    let made = sqlite::outbox::install(&path, &outbox.table)?;
                    made.then(|| format!("made the outbox table {}", outbox.table)).into_iter().collect()
                }
                None if tables.is_empty() => Vec::new(),
                None => sqlite::install(&path, &tables, outbox.as_ref())?,
            };
            let made = inbox && sqlite::inbox::install(&path)?;
            lines.extend(made.then(|| INBOX.to_owned()));
            Ok(Done::lines(lines))
        }
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
    let url = postgres::url::ConnectOptions::parse(&args.url)?;
    if args.print {
        let outbox = if args.no_outbox { String::new() } else { postgres::outbox::script(&args.outbox)? };
        let inbox = if args.inbox { postgres::inbox::script(&args.inbox_schema) } else { String::new() };
        return Ok(Done::Sql(outbox + &inbox));
    }
    let mut lines = Vec::new();
    if !args.no_outbox && postgres::outbox::install(&url, &args.outbox).await? {
        lines.push(format!("made the outbox table {}", args.outbox));
    }
    if args.inbox && postgres::inbox::install(&url, &args.inbox_schema).await? {
        lines.push(INBOX.to_owned());
    }
    let outbox = (!args.no_outbox).then_some(args.outbox.as_str());
    Ok(Done::Lines(lines, postgres::to_mend(&url, outbox).await?))
}

async fn on_mysql(args: &InitArgs) -> Result<Done> {
    let wrong = |text: &str, hint: &str| Err(Error::new(Kind::Config, text).hint(hint));
    if args.remove {
        return wrong(
            "on MySQL there are no triggers to remove",
            "`headwater outbox drop` takes the outbox away, once no service writes to it any more",
        );
    }
    if !args.tables.is_empty() {
        return wrong(
            "tables of MySQL are not captured yet",
            "leave out --tables: only an outbox is made here",
        );
    }
    let url = mysql::url::ConnectOptions::parse(&args.url)?;
    if args.print {
        let outbox = if args.no_outbox { String::new() } else { mysql::outbox::script(&args.outbox)? };
        return Ok(Done::Sql(outbox + if args.inbox { mysql::inbox::SCRIPT } else { "" }));
    }
    let (mut lines, mut mend) = (Vec::new(), Vec::new());
    if !args.no_outbox {
        if mysql::outbox::install(&url, &args.outbox).await? {
            lines.push(format!("made the outbox table {}", args.outbox));
        }
        mend = mysql::outbox::to_mend(&url, &args.outbox).await?;
    }
    if args.inbox && mysql::inbox::install(&url).await? {
        lines.push(INBOX.to_owned());
    }
    Ok(Done::Lines(lines, mend))
}
