//! A database whose rows must survive whatever the sprite survives.

use rusqlite::Connection;

/// Every answer opens it anew: what counts is what is on the disk.
fn open() -> rusqlite::Result<Connection> {
    let database = Connection::open("rows.sqlite")?;
    database.pragma_update(None, "journal_mode", "wal")?;
    database.pragma_update(None, "synchronous", "full")?;
    database.execute_batch("create table if not exists rows (id integer primary key, text text not null)")?;
    Ok(database)
}

/// Adds a row; it is on the disk when this returns.
pub(crate) fn insert(id: u64) -> rusqlite::Result<String> {
    let text = format!("{id:0>1000}");
    open()?.execute("insert or replace into rows values (?1, ?2)", (id.cast_signed(), text))?;
    Ok(id.to_string())
}

/// What SQLite says of the database, and what is in it.
pub(crate) fn check() -> rusqlite::Result<String> {
    let database = open()?;
    let integrity: String = database.query_row("pragma integrity_check", [], |row| row.get(0))?;
    let (rows, last): (i64, Option<i64>) =
        database.query_row("select count(*), max(id) from rows", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(serde_json::json!({ "integrity": integrity, "rows": rows, "last": last }).to_string())
}
