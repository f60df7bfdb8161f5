//! Our PostgreSQL client against a real server.

use headwater_connect::postgres::client::{Connection, Mode, PgError, Replicated};
use headwater_connect::postgres::url::ConnectOptions;
use headwater_core::Kind;
use headwater_testkit::servers::{PgBouncer, Postgres};
use sqlx::{Connection as _, Executor as _, Row as _};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

#[tokio::test]
async fn queries_and_copies_over_tcp_and_the_unix_socket() {
    let database = Postgres::shared().await.unwrap().create_database().await.unwrap();
    for url in [database.url(), database.unix_url()] {
        let options = ConnectOptions::parse(url).unwrap();
        let mut connection = Connection::connect(&options, Mode::Sql).await.unwrap();
        let rows = connection.query("select 1, null, 'x'; select timestamptz '2020-01-01 00:00:00+01'").await;
        let rows = rows.unwrap();
        assert_eq!((rows[0].get(0), rows[0].get(1), rows[0].get(2)), (Some("1"), None, Some("x")));
        assert_eq!(rows[1].get(0), Some("2019-12-31 23:00:00+00"));
        let error = connection.query("select nonsense").await.unwrap_err();
        assert_eq!((error.kind(), PgError::code_of(&error)), (Kind::Refused, Some("42703")));
        let mut copied = Vec::new();
        let sql = "copy (select n, 'a b' from generate_series(1, 30000) n) to stdout";
        let mut copy = connection.copy_out(sql).await.unwrap();
        while let Some(gulp) = copy.next().await.unwrap() {
            let bytes = gulp.bytes().clone();
            copied.extend(gulp.map(|body| bytes.slice(body)));
        }
        assert_eq!((copied.len(), &copied[29_999][..]), (30_000, &b"30000\ta b\n"[..]));
        assert_eq!(
            connection.query("select 2").await.unwrap()[0].get(0),
            Some("2"),
            "free again after a copy"
        );
    }
}

#[tokio::test]
async fn nobodys_functions_take_the_place_of_the_servers_own() {
    let database = Postgres::shared().await.unwrap().create_database().await.unwrap();
    // Whoever may create in a schema of the path: it fits a name better than the server's, which takes text.
    let shadow = "create function public.lower(varchar) returns text language sql as $$ select 'shadow' $$";
    let path = format!("alter database {} set search_path = public, pg_catalog", database.name());
    database.execute(&format!("{shadow}; {path}")).await.unwrap();
    let options = ConnectOptions::parse(database.url()).unwrap();
    for mode in [Mode::Sql, Mode::Replication] {
        let mut connection = Connection::connect(&options, mode).await.unwrap();
        let rows = connection.query("select lower('A'::varchar)").await.unwrap();
        assert_eq!(rows[0].get(0), Some("a"));
    }
}

#[tokio::test]
async fn a_failing_copy_is_an_error_and_the_connection_goes_on() {
    let database = Postgres::shared().await.unwrap().create_database().await.unwrap();
    let options = ConnectOptions::parse(database.url()).unwrap();
    let mut connection = Connection::connect(&options, Mode::Sql).await.unwrap();
    let sql = "copy (select 1 / (3 - n) from generate_series(1, 5) n) to stdout";
    let mut copy = connection.copy_out(sql).await.unwrap();
    let error = loop {
        match copy.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the copy cannot end well"),
            Err(error) => break error,
        }
    };
    assert_eq!(PgError::code_of(&error), Some("22012"));
    drop(copy);
    assert_eq!(connection.query("select 2").await.unwrap()[0].get(0), Some("2"));
}

#[tokio::test]
async fn replicates_and_confirms() {
    let server = Postgres::shared().await.unwrap();
    let database = server.create_database().await.unwrap();
    let slot = format!("{}_client", database.name());
    database.execute("create table t (id int primary key); create publication p for table t").await.unwrap();
    let options = ConnectOptions::parse(database.url()).unwrap();
    let mut connection = Connection::connect(&options, Mode::Replication).await.unwrap();
    connection.query(&format!("CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput")).await.unwrap();
    database.execute("insert into t values (1)").await.unwrap();
    let start =
        format!("START_REPLICATION SLOT {slot} LOGICAL 0/0 (proto_version '1', publication_names 'p')");
    let (mut reader, mut writer) = connection.start_replication(&start).await.unwrap();
    let mut kinds = String::new();
    let mut end = 0;
    while !kinds.ends_with('C') {
        let gulp = reader.next().await.unwrap();
        let bytes = gulp.bytes().clone();
        for body in gulp {
            match Replicated::read(&bytes, body).unwrap() {
                Replicated::Data { body, lsn } => {
                    kinds.push(char::from(bytes[body.start]));
                    end = end.max(lsn);
                }
                Replicated::Keepalive { .. } => {}
            }
        }
    }
    assert_eq!(kinds, "BRIC");
    writer.status(end, true).await.unwrap();
    let gulp = reader.next().await.unwrap();
    let bytes = gulp.bytes().clone();
    let answers: Vec<_> = gulp.map(|body| Replicated::read(&bytes, body).unwrap()).collect();
    assert!(matches!(answers[0], Replicated::Keepalive { .. }), "{answers:?}");
}

#[tokio::test]
async fn what_the_server_refuses_says_why() {
    let server = Postgres::settings().hba("host all all 127.0.0.1/32 scram-sha-256").start().await.unwrap();
    let admin = server.database("postgres");
    admin.execute("create role app login password 's3cret'").await.unwrap();
    let url =
        |user: &str, query: &str| format!("postgres://{user}@127.0.0.1:{}/postgres{query}", server.port());
    let connect = async |url: String| {
        let options = ConnectOptions::parse(&url).unwrap();
        Connection::connect(&options, Mode::Sql).await.map(drop).map_err(|error| error.to_string())
    };
    connect(url("app:s3cret", "")).await.unwrap();
    let wrong = connect(url("app:wrong-password", "")).await.unwrap_err();
    assert!(wrong.contains("28P01") && !wrong.contains("wrong-password"), "{wrong}");
    assert!(connect(url("app", "")).await.unwrap_err().contains("wants a password"));
    assert!(connect(url("app:s3cret", "?sslmode=require")).await.unwrap_err().contains("offers no TLS"));
}

/// One that leaves them out. What is set later is for whoever has the session: where it is lent for a transaction nothing is.
#[tokio::test(flavor = "multi_thread")]
async fn behind_a_pooler_our_settings_are_set_where_the_session_is_ours() {
    let server = Postgres::shared().await.unwrap();
    let ignored = "search_path, IntervalStyle, bytea_output, extra_float_digits, statement_timeout, lock_timeout, \
         idle_in_transaction_session_timeout";
    let database = server.database("postgres");
    let asked = "SELECT current_setting('IntervalStyle'), current_setting('search_path'), interval '1 day'";
    for (mode, ours) in [("session", true), ("transaction", false)] {
        let url = PgBouncer::start(server, mode, ignored).await.unwrap();
        let (url, _pooler) = (url.url(&database), url);
        let connected = Connection::connect(&ConnectOptions::parse(&url).unwrap(), Mode::Sql).await;
        if ours {
            let rows = connected.unwrap().query(asked).await.unwrap();
            assert_eq!([0, 1, 2].map(|at| rows[0].get(at)), [Some("iso_8601"), Some(""), Some("P1D")]);
            continue;
        }
        let error = connected.err().unwrap();
        assert_eq!(error.kind(), Kind::Refused, "{error}");
        assert!(
            error.to_string().contains("lends") && error.hint_text().unwrap().contains("PostgreSQL itself")
        );
        let mut service = sqlx::PgConnection::connect(&url).await.unwrap();
        let row = service.fetch_one(sqlx::raw_sql(asked)).await.unwrap();
        assert_eq!(row.get::<&str, _>(1), "\"$user\", public", "the next one finds a session as it was");
    }
}

#[tokio::test]
async fn a_pooler_that_refuses_our_settings_is_not_tried_again() {
    let pooler = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = pooler.local_addr().unwrap().port();
    let answer = async {
        let (mut stream, _) = pooler.accept().await.unwrap();
        let length = stream.read_u32().await.unwrap() as usize;
        stream.read_exact(&mut vec![0; length - 4]).await.unwrap();
        // As PgBouncer says it.
        let fields = b"SFATAL\0C08P01\0Munsupported startup parameter: search_path\0\0";
        stream
            .write_all(&[b"E", &(fields.len() as u32 + 4).to_be_bytes()[..], fields].concat())
            .await
            .unwrap();
    };
    let url = format!("postgres://u@127.0.0.1:{port}/d?sslmode=disable");
    let options = ConnectOptions::parse(&url).unwrap();
    let ((), connected) = tokio::join!(answer, Connection::connect(&options, Mode::Sql));
    let error = connected.err().unwrap();
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    assert!(error.hint_text().unwrap().contains("PostgreSQL itself"), "{error}");
}
