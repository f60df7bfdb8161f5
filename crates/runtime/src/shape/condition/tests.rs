use headwater_core::{CellKind, Column, ColumnType, Identity, Origin, Position, RowBuilder, Transaction};

use super::*;

fn table() -> Arc<Table> {
    let column = |name: &str, ty, key| Column { name: name.into(), ty, key };
    Arc::new(Table {
        schema: "public".into(),
        name: "orders".into(),
        columns: vec![
            column("id", ColumnType::Int64, true),
            column("state", ColumnType::Text, false),
            column("total", ColumnType::Numeric { precision_scale: None }, false),
        ],
        identity: Identity::Full,
    })
}

/// A row of texts: `~` is unchanged, `?` absent, `NULL` null.
fn row(values: [&str; 3]) -> Option<Row> {
    let mut row = RowBuilder::default();
    for value in values {
        match value {
            "~" => row.push(CellKind::Unchanged, b""),
            "?" => row.push(CellKind::Absent, b""),
            "NULL" => row.push(CellKind::Null, b""),
            text => row.push(CellKind::Text, text.as_bytes()),
        }
    }
    Some(row.build())
}

fn decide(condition: &str, op: Op, before: Option<Row>, after: Option<Row>) -> Decision {
    let origin = Origin {
        source: "s".into(),
        connector: "postgres".into(),
        database: "d".into(),
        system_id: "1".into(),
    };
    let transaction =
        Transaction { origin: Arc::new(origin), id: "1".into(), committed_at: 0, log_position: "0/1".into() };
    let change = Change {
        op,
        table: table(),
        before,
        after,
        position: Position::of(0, [1]),
        transaction: Arc::new(transaction),
    };
    Arc::new(Condition::parse(condition).unwrap()).bind(&table()).unwrap().decide(&change)
}

const OPEN: [&str; 3] = ["1", "open", "10.5"];
const DRAFT: [&str; 3] = ["1", "draft", "10.5"];
const KEY: [&str; 3] = ["1", "?", "?"];

#[test]
fn rows_enter_and_leave() {
    use Decision::{Drop, Pass};
    let not_draft = r#"after.state != "draft""#;
    let cases = [
        (Op::Read, None, row(OPEN), Pass(Op::Read)),
        (Op::Read, None, row(DRAFT), Drop),
        (Op::Create, None, row(OPEN), Pass(Op::Create)),
        (Op::Create, None, row(DRAFT), Drop),
        (Op::Update, row(OPEN), row(OPEN), Pass(Op::Update)),
        (Op::Update, row(DRAFT), row(OPEN), Pass(Op::Create)),
        (Op::Update, row(OPEN), row(DRAFT), Pass(Op::Delete)),
        (Op::Update, row(DRAFT), row(DRAFT), Drop),
        (Op::Update, None, row(OPEN), Pass(Op::Update)),
        (Op::Update, None, row(DRAFT), Pass(Op::Delete)),
        (Op::Update, row(KEY), row(OPEN), Pass(Op::Update)),
        (Op::Update, row(KEY), row(DRAFT), Pass(Op::Delete)),
        (Op::Delete, row(OPEN), None, Pass(Op::Delete)),
        (Op::Delete, row(DRAFT), None, Drop),
        (Op::Delete, row(KEY), None, Pass(Op::Delete)),
        // An unchanged value is taken from the row before, where that has it.
        (Op::Update, row(OPEN), row(["1", "~", "3"]), Pass(Op::Update)),
        (Op::Update, row(DRAFT), row(["1", "~", "3"]), Drop),
    ];
    for (number, (op, before, after, expected)) in cases.into_iter().enumerate() {
        assert_eq!(decide(not_draft, op, before, after), expected, "case {number}");
    }
}

#[test]
fn what_cannot_be_known_is_undecided() {
    let unknown = decide(r#"after.state != "draft""#, Op::Update, None, row(["1", "~", "3"]));
    assert!(matches!(&unknown, Decision::Undecided(why) if why.contains("column state")), "{unknown:?}");
    let null = decide("after.total > 5.0", Op::Create, None, row(["1", "open", "NULL"]));
    assert!(matches!(&null, Decision::Undecided(why) if why.contains("failed")), "{null:?}");
    let number = decide("after.id", Op::Create, None, row(OPEN));
    assert!(matches!(&number, Decision::Undecided(why) if why.contains("neither")), "{number:?}");
}

#[test]
fn an_unknown_value_that_does_not_matter_does_not_stop_a_change() {
    let unchanged = row(["1", "~", "3"]);
    let either = "after.state == 'open' || after.id == 1";
    assert_eq!(decide(either, Op::Update, None, unchanged.clone()), Decision::Pass(Op::Update));
    let both = "after.state == 'open' && after.id == 2";
    assert_eq!(decide(both, Op::Update, None, unchanged.clone()), Decision::Pass(Op::Delete));
    let presence = decide("has(after.state)", Op::Update, None, unchanged);
    assert!(matches!(presence, Decision::Undecided(_)), "{presence:?}");
}

#[test]
fn values_compare_as_their_types_do() {
    let holds = [
        "after.id == 1",
        "after.id > 0 && after.id < 2.5",
        "after.total == 10.5",
        "after.total > 10",
        "after['state'] == 'open'",
        "after.state in ['open', 'paid']",
        "after.state.startsWith('op')",
        "['open', 'paid'].exists(x, x == after.state)",
        "size(after) == 3",
        "after.total != null",
    ];
    for condition in holds {
        assert_eq!(decide(condition, Op::Create, None, row(OPEN)), Decision::Pass(Op::Create), "{condition}");
    }
    assert_eq!(
        decide("after.total == null", Op::Create, None, row(["1", "open", "NULL"])),
        Decision::Pass(Op::Create)
    );
}

#[test]
fn a_condition_on_the_change_passes_or_drops_it() {
    let moved = "before.state != after.state";
    assert_eq!(decide(moved, Op::Update, row(DRAFT), row(OPEN)), Decision::Pass(Op::Update));
    assert_eq!(decide(moved, Op::Update, row(OPEN), row(OPEN)), Decision::Drop);
    let undecided = decide(moved, Op::Update, row(KEY), row(OPEN));
    assert!(matches!(undecided, Decision::Undecided(_)), "{undecided:?}");
    assert_eq!(decide("op == 'delete'", Op::Delete, row(KEY), None), Decision::Pass(Op::Delete));
    assert_eq!(decide("op != 'delete'", Op::Delete, row(KEY), None), Decision::Drop);
    let first = "before == null || before.state != after.state";
    assert_eq!(decide(first, Op::Create, None, row(OPEN)), Decision::Pass(Op::Create));
}

#[test]
fn wrong_conditions_are_refused() {
    for (text, says) in [("after.state ==", "cannot be understood"), ("row.state == 1", "\"row\"")] {
        let error = Condition::parse(text).err().unwrap();
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.to_string().contains(says), "{error}");
    }
    let error = Arc::new(Condition::parse("after.stat == 'x'").unwrap()).bind(&table()).err().unwrap();
    assert_eq!(error.kind(), Kind::Contract);
    assert!(error.to_string().contains("did you mean state?"), "{error}");
}
