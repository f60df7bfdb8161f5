//! `headwater outbox`: what is done to the outbox of a service's database.

use headwater_connect::{mysql, postgres, sqlite};
use headwater_core::{Error, Kind, Result};
use serde_json::json;

use crate::args::{DropArgs, OutboxArgs, OutboxCommand};
use crate::output;

/// Does what was asked for.
pub async fn outbox(args: &OutboxArgs) -> Result<u8> {
    match &args.command {
        OutboxCommand::Drop(args) => drop_outbox(args).await,
    }
}

async fn drop_outbox(args: &DropArgs) -> Result<u8> {
    let kind = args.url.split(':').next().unwrap_or_default();
    let dropped = match kind {
        "postgres" | "postgresql" if args.print => {
            output::line(postgres::outbox::removal_script(&args.outbox).trim_end())?;
            return Ok(0);
        }
        "postgres" | "postgresql" => {
            let url = postgres::url::ConnectOptions::parse(&args.url)?;
            postgres::outbox::remove(&url, &args.outbox, args.force).await?
        }
        "mysql" | "mariadb" if args.print => {
            output::line(mysql::outbox::removal_script(&args.outbox).trim_end())?;
            return Ok(0);
        }
        "mysql" | "mariadb" => {
            let url = mysql::url::ConnectOptions::parse(&args.url)?;
            mysql::outbox::remove(&url, &args.outbox, args.force).await?
        }
        "sqlite" if args.print => {
            output::line(sqlite::outbox::removal_script(&args.outbox).trim_end())?;
            return Ok(0);
        }
        "sqlite" => {
            let (path, outbox, force) = (sqlite::file_of(&args.url), args.outbox.clone(), args.force);
            let work = move || sqlite::outbox::remove(&path, &outbox, force);
            let done = tokio::task::spawn_blocking(work).await;
            done.map_err(|error| Error::new(Kind::Internal, "dropping the outbox").because(error))??
        }
        _ => {
            return Err(Error::new(
                Kind::Config,
                "this is not the URL of a database whose outbox can be dropped",
            )
            .hint("write postgres://user@host/database, mysql://user@host/database or sqlite:///path/to/file.db"));
        }
    };
    if args.json {
        output::json(&json!({ "dropped": dropped }))?;
    } else if dropped {
        output::line(format!("dropped the outbox {} and all that belonged to it", args.outbox))?;
    } else {
        output::line(format!("there is no outbox {}", args.outbox))?;
    }
    Ok(u8::from(!dropped))
}
