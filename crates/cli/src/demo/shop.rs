//! The shop: an application that knows nothing of Headwater but the outbox table it writes to.

use std::path::Path;
use std::time::Duration;

use headwater_core::{Error, Kind, Result, ResultExt};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use serde_json::json;

/// What an order that is rolled back says, so that it is recognised should it ever arrive.
pub const NEVER: &str = "rolled back: must never arrive";

const NAMES: [&str; 8] = ["Ada", "Grace", "Edsger", "Barbara", "Tony", "Frances", "Niklaus", "Radia"];
const PRODUCTS: [(&str, i64); 6] = [
    ("teapot", 2499),
    ("green tea", 690),
    ("black tea", 590),
    ("cup", 850),
    ("kettle", 4900),
    ("honey", 720),
];

/// A shop on its own connection. Every method blocks.
pub struct Shop {
    connection: Connection,
    random: StdRng,
}

impl Shop {
    /// Opens the shop, making its tables and first customers where they are missing.
    pub fn open(path: &Path) -> Result<Self> {
        let doing = || format!("opening the shop {}", path.display());
        let connection = Connection::open(path).doing(Kind::Unavailable, doing)?;
        connection.busy_timeout(Duration::from_secs(10)).doing(Kind::Internal, doing)?;
        connection.execute_batch(include_str!("shop.sql")).doing(Kind::Unavailable, doing)?;
        connection.execute_batch("PRAGMA foreign_keys = ON").doing(Kind::Internal, doing)?;
        let shop = Self { connection, random: StdRng::seed_from_u64(rand::random()) };
        let customers: i64 = shop.one("SELECT count(*) FROM customers")?.unwrap_or(0);
        if customers == 0 {
            for name in NAMES {
                let insert = "INSERT INTO customers (name, email) VALUES (?1, lower(?1) || '@example.com')";
                shop.connection.execute(insert, [name]).map_err(sql)?;
            }
        }
        Ok(shop)
    }

    /// Does one piece of business; says whether it was rolled back.
    pub fn trade(&mut self) -> Result<bool> {
        match self.random.random_range(0..100) {
            0..45 => self.place(true),
            45..53 => self.place(false),
            53..80 => self.advance(),
            80..88 => self.cancel(),
            88..94 => self.forget(),
            _ => self.customer(),
        }
    }

    /// Places an order: the order, its lines and the event that says so, in one transaction.
    fn place(&mut self, commit: bool) -> Result<bool> {
        let customer: i64 = self.one("SELECT id FROM customers ORDER BY random() LIMIT 1")?.unwrap_or(1);
        let lines: Vec<(&str, i64, i64)> = (0..self.random.random_range(1..4))
            .map(|_| {
                let (product, price) = PRODUCTS[self.random.random_range(0..PRODUCTS.len())];
                (product, price, self.random.random_range(1..4))
            })
            .collect();
        let total: i64 = lines.iter().map(|(_, price, quantity)| price * quantity).sum();
        let tx = begin(&mut self.connection)?;
        let note = (!commit).then_some(NEVER);
        let insert = "INSERT INTO orders (customer_id, status, total_cents, note) VALUES (?, 'new', ?, ?)";
        tx.execute(insert, params![customer, total, note]).map_err(sql)?;
        let order = tx.last_insert_rowid();
        for (line, (product, price, quantity)) in (1..).zip(&lines) {
            let insert = "INSERT INTO order_lines VALUES (?, ?, ?, ?, ?)";
            tx.execute(insert, params![order, line, product, quantity, price]).map_err(sql)?;
        }
        let payload = json!({ "order": order, "customer": customer, "total": total, "lines": lines.len() });
        publish(&tx, "OrderPlaced", order, &payload)?;
        if commit {
            tx.commit().map_err(sql)?
        } else {
            tx.rollback().map_err(sql)?
        }
        Ok(!commit)
    }

    /// Takes an order one step further.
    fn advance(&mut self) -> Result<bool> {
        let update = "UPDATE orders SET status = CASE status WHEN 'new' THEN 'paid' WHEN 'paid' THEN 'packed' \
            ELSE 'shipped' END WHERE id = (SELECT id FROM orders WHERE status IN ('new', 'paid', 'packed') \
            ORDER BY random() LIMIT 1)";
        let changed = self.connection.execute(update, []).map_err(sql)?;
        if changed == 0 { self.place(true) } else { Ok(false) }
    }

    /// Cancels an order that is not on its way yet.
    fn cancel(&mut self) -> Result<bool> {
        let open = "SELECT id FROM orders WHERE status IN ('new', 'paid') ORDER BY random() LIMIT 1";
        let Some(order) = self.one(open)? else { return self.place(true) };
        let tx = begin(&mut self.connection)?;
        tx.execute("UPDATE orders SET status = 'cancelled' WHERE id = ?", [order]).map_err(sql)?;
        publish(&tx, "OrderCancelled", order, &json!({ "order": order }))?;
        tx.commit().map_err(sql)?;
        Ok(false)
    }

    /// Deletes a cancelled order; its lines go with it.
    fn forget(&mut self) -> Result<bool> {
        let cancelled = "SELECT id FROM orders WHERE status = 'cancelled' ORDER BY random() LIMIT 1";
        let Some(order) = self.one(cancelled)? else { return self.advance() };
        self.connection.execute("DELETE FROM orders WHERE id = ?", [order]).map_err(sql)?;
        Ok(false)
    }

    /// Someone moves to another provider.
    fn customer(&mut self) -> Result<bool> {
        let update = "UPDATE customers SET email = lower(name) || id || '@' || ?1 || '.example' \
            WHERE id = (SELECT id FROM customers ORDER BY random() LIMIT 1)";
        let provider = ["mail", "post", "letters", "inbox"][self.random.random_range(0..4)];
        self.connection.execute(update, [provider]).map_err(sql)?;
        Ok(false)
    }

    fn one(&self, query: &str) -> Result<Option<i64>> {
        self.connection.query_row(query, [], |row| row.get(0)).optional().map_err(sql)
    }
}

fn begin(connection: &mut Connection) -> Result<Transaction<'_>> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)
}

/// What a service in any language does to publish an event: one INSERT in its own transaction.
fn publish(tx: &Transaction<'_>, kind: &str, order: i64, payload: &serde_json::Value) -> Result<()> {
    let insert = "INSERT INTO outbox (stream, key, type, payload) VALUES ('order', ?, ?, ?)";
    tx.execute(insert, params![order.to_string(), kind, payload.to_string()]).map_err(sql)?;
    Ok(())
}

fn sql(error: rusqlite::Error) -> Error {
    Error::new(Kind::Unavailable, "the shop's own SQL").because(error)
}
