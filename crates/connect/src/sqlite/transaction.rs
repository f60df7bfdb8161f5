//! Transactions on the connections of a pool.

use sqlx::pool::MaybePoolConnection;
use sqlx::{Connection as _, SqlSafeStr as _, Sqlite, SqlitePool, Transaction};

/// Begins one with this statement.
pub(super) async fn begin(
    pool: &SqlitePool,
    statement: &'static str,
) -> sqlx::Result<Transaction<'static, Sqlite>> {
    loop {
        let connection = pool.acquire().await?;
        // A transaction that SQLite has rolled back by itself, as on a full disk, sqlx never takes for ended: it would
        // refuse every other on this connection.
        if connection.is_in_transaction() {
            connection.detach().close_hard().await?;
            continue;
        }
        let connection = MaybePoolConnection::PoolConnection(connection);
        return Transaction::begin(connection, Some(statement.into_sql_str())).await;
    }
}
