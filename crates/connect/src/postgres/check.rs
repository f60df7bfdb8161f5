//! `headwater check`: what the server is missing, what is odd about it, and how to mend it. Changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use headwater_core::ports::{Check, Finding};
use headwater_core::{Error, Result, Table};

use super::catalog::Catalog;
use super::client::{Connection, Mode, quote_literal};
use super::config::{Names, PostgresConfig};
use super::indexes;
use super::outbox::check_log;
use super::setup::{CapturedTable, InsertsOnly, Narrow, Plan, Server, Slot, connect, plan, resolve};
use super::snapshot::{self, Published};

/// A `wal_sender_timeout` below this leaves our status replies little room, in milliseconds.
const SHORT_TIMEOUT: u64 = 5_000;

/// The encodings whose every byte is a character to PostgreSQL.
const WHOLE: [&str; 15] = [
    "UTF8",
    "LATIN1",
    "LATIN2",
    "LATIN4",
    "LATIN5",
    "LATIN6",
    "LATIN7",
    "LATIN8",
    "LATIN9",
    "LATIN10",
    "ISO_8859_5",
    "KOI8R",
    "KOI8U",
    "WIN866",
    "WIN1256",
];

/// All that can be said of the source; what keeps the rest from being known ends it.
pub(super) async fn check(names: &Names, config: &PostgresConfig) -> Check {
    let mut check = Check::default();
    if let Err(error) = look(names, config, &mut check).await {
        check.findings.push(finding(&error));
    }
    check
}

async fn look(names: &Names, config: &PostgresConfig, check: &mut Check) -> Result<()> {
    let findings = &mut check.findings;
    let mut connection = connect(&config.url).await?;
    let server = Server::read(&mut connection).await?;
    findings.push(Finding::ok(format!(
        "connected to PostgreSQL {} as {}, which may replicate",
        connection.parameter("server_version").unwrap_or("(no version)"),
        config.url
    )));
    findings.push(match server.ready() {
        Ok(()) => Finding::ok("wal_level is logical"),
        Err(error) => finding(&error),
    });
    findings.extend(encoding(&server));
    let settings = Settings::read(&mut connection).await?;
    findings.extend(settings.findings());
    let (tables, wrong) = resolve(&mut connection, config, &BTreeMap::new()).await?;
    findings.extend(wrong.iter().map(finding));
    match plan(&mut connection, names, config.publication.is_none(), &server, &tables).await {
        Ok(plan) => {
            findings.extend(tables.iter().filter(|table| table.changes).map(|table| of_table(table, &plan)));
            findings.push(publications(names, &plan, &server));
            if wrong.is_empty() {
                check.tables = Some(describe(config, &server, &plan, &tables).await?);
            }
            let narrow = plan.narrow.into_iter();
            findings.extend(narrow.map(|Narrow { what, mend }| Finding::warning(what, mend)));
        }
        Err(error) => findings.push(finding(&error)),
    }
    if let Some(outbox) = &config.outbox {
        findings.extend(check_log(&mut connection, &outbox.table).await?);
    }
    let outbox = config.outbox.as_ref().map(|outbox| outbox.table.as_str());
    findings.extend(indexes::look(&mut connection, outbox).await?);
    let slot = Slot::find(&mut connection, &names.slot).await?;
    findings.push(match slot {
        Some(slot) => of_slot(&slot, names, &server),
        None => settings.room(&names.slot),
    });
    Ok(())
}

/// The tables as their changes will describe them.
async fn describe(
    config: &PostgresConfig,
    server: &Server,
    plan: &Plan,
    tables: &[CapturedTable],
) -> Result<Vec<Arc<Table>>> {
    let mut catalog = Catalog::new(Connection::connect(&config.url, Mode::Sql).await?);
    // Ours publishes every column, and may not be there yet.
    let publications = if plan.theirs { &plan.publications[..] } else { &[] };
    let published = Published { version: server.version, publications };
    let mut described = Vec::with_capacity(tables.len());
    for table in tables {
        described.extend(snapshot::describe(&mut catalog, table, &published).await?);
    }
    Ok(described)
}

/// An error as a finding.
fn finding(error: &Error) -> Finding {
    let hint = error.hint_text().unwrap_or_default();
    let text = error.to_string();
    let message = text.strip_suffix(&format!("\n  hint: {hint}")).unwrap_or(&text);
    Finding::error(message, hint)
}

fn encoding(server: &Server) -> Option<Finding> {
    let (database, encoding) = (&server.database, &server.encoding);
    match encoding.as_str() {
        "SQL_ASCII" => Some(Finding::warning(
            format!("database \"{database}\" has the encoding SQL_ASCII: it may hold text that is not UTF-8"),
            "a row with such text cannot be an event and is parked; give the database a real encoding (dump and restore into one made WITH ENCODING 'UTF8')",
        )),
        known if WHOLE.contains(&known) => None,
        _ => Some(Finding::warning(
            format!(
                "database \"{database}\" has the encoding {encoding}: it may hold bytes that are no character of it, and a row with such bytes stops the source"
            ),
            "look for such rows (docs/operations.md, \"Text that is no text\", has the SQL), or give the database the encoding UTF8 (dump and restore into one made WITH ENCODING 'UTF8')",
        )),
    }
}

fn of_table(table: &CapturedTable, plan: &Plan) -> Finding {
    let name = table.full_name();
    match &table.inserts_only {
        None => Finding::ok(format!("{name} is captured")),
        Some(InsertsOnly { why, mend }) if plan.theirs => Finding::warning(
            format!(
                "{name}: {why}; where publication \"{}\" publishes its updates and deletes, they fail for whoever makes them",
                plan.publications.join(", ")
            ),
            format!("run as its owner: {mend}"),
        ),
        Some(InsertsOnly { why, mend }) => Finding::warning(
            format!(
                "{name}: only inserts are captured, because {why}: publishing its updates would make them fail"
            ),
            format!("to capture updates and deletes too, run as its owner: {mend} then restart headwater"),
        ),
    }
}

fn publications(names: &Names, plan: &Plan, server: &Server) -> Finding {
    let listed = plan.publications.join(", ");
    if plan.statements.is_empty() {
        Finding::ok(format!("what is published fits the config (publication {listed})"))
    } else if server.standby {
        finding(&plan.refused_by_standby())
    } else if plan.permitted {
        Finding::ok(format!(
            "publication {listed}: headwater run makes it fit the config of {}",
            names.source
        ))
    } else {
        finding(&plan.refused(&server.user))
    }
}

fn of_slot(slot: &Slot, names: &Names, server: &Server) -> Finding {
    let name = &names.slot;
    if let Err(error) = slot.usable(server, names) {
        return finding(&error);
    }
    if let Some(why) = slot.lost() {
        let mend = format!("read the tables anew: headwater snapshot --source {}", names.source);
        return Finding::error(format!("slot \"{name}\" is lost: {why}"), mend);
    }
    let kept = slot.kept.map_or("an unknown amount".to_owned(), mebibytes);
    match slot.left {
        Some(left) if slot.kept.is_some_and(|kept| i64::try_from(kept).is_ok_and(|kept| kept > left)) => {
            Finding::warning(
                format!(
                    "slot \"{name}\" keeps {kept} of log and is lost after {} more",
                    mebibytes(left.max(0).unsigned_abs())
                ),
                "run headwater so that it catches up, or raise max_slot_wal_keep_size",
            )
        }
        _ => Finding::ok(format!("slot \"{name}\" is there; the server keeps {kept} of log for it")),
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit after the point")]
fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Settings of the server that matter to us.
struct Settings {
    slots: u64,
    max_slots: u64,
    /// Mebibytes; `None` without a limit.
    keep: Option<u64>,
    /// Milliseconds; 0 is never.
    timeout: u64,
    /// Kibibytes.
    decoding_memory: u64,
}

impl Settings {
    async fn read(connection: &mut Connection) -> Result<Self> {
        let setting =
            |name: &str| format!("(SELECT setting FROM pg_settings WHERE name = {})", quote_literal(name));
        let sql = format!(
            "SELECT (SELECT count(*) FROM pg_replication_slots), {}, {}, {}, {}",
            setting("max_replication_slots"),
            setting("max_slot_wal_keep_size"),
            setting("wal_sender_timeout"),
            setting("logical_decoding_work_mem")
        );
        let rows = connection.query(&sql).await?;
        let number = |at: usize| rows.first().map_or(Ok(0), |row| row.number::<i64>(at));
        let count = |at: usize| number(at).map(|number| number.max(0).unsigned_abs());
        Ok(Self {
            slots: count(0)?,
            max_slots: count(1)?,
            keep: u64::try_from(number(2)?).ok(),
            timeout: count(3)?,
            decoding_memory: count(4)?,
        })
    }

    fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        if (1..SHORT_TIMEOUT).contains(&self.timeout) {
            findings.push(Finding::warning(
                format!(
                    "wal_sender_timeout is {} ms: a short pause of the network ends the replication",
                    self.timeout
                ),
                "set wal_sender_timeout to 60s, its default",
            ));
        }
        findings.push(match self.keep {
            None => Finding::ok("max_slot_wal_keep_size is not limited: while headwater is down the server keeps all log for it, so watch its disk"),
            Some(keep) => Finding::ok(format!("max_slot_wal_keep_size is {keep} MiB: the slot is lost, and a new snapshot needed, when headwater is further behind")),
        });
        findings.push(Finding::ok(format!(
            "transactions beyond {} MiB are sent before they end (logical_decoding_work_mem)",
            self.decoding_memory / 1024
        )));
        findings
    }

    /// Whether one more slot can be made.
    fn room(&self, name: &str) -> Finding {
        if self.slots < self.max_slots {
            return Finding::ok(format!(
                "slot \"{name}\" will be made by headwater run ({} of {} slots are in use)",
                self.slots, self.max_slots
            ));
        }
        Finding::error(
            format!("slot \"{name}\" cannot be made: all {} slots of the server are in use", self.max_slots),
            "drop one that nothing needs (SELECT slot_name, active, restart_lsn FROM pg_replication_slots; SELECT pg_drop_replication_slot('NAME');), or raise max_replication_slots and restart PostgreSQL",
        )
    }
}
