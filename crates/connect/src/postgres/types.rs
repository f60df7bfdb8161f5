//! PostgreSQL's types in the words of the core.

use headwater_core::ColumnType;

/// A built-in type by its object identifier (`src/include/catalog/pg_type.dat`) and modifier; `None` for
/// those that the catalog must be asked for.
pub fn built_in(oid: u32, modifier: i32) -> Option<ColumnType> {
    Some(match oid {
        16 => ColumnType::Bool,
        17 => ColumnType::Bytes,
        18 | 19 | 25 | 1042 | 1043 => ColumnType::Text,
        20 => ColumnType::Int64,
        21 => ColumnType::Int16,
        23 => ColumnType::Int32,
        26 => ColumnType::Oid,
        114 => ColumnType::Json,
        700 => ColumnType::Float32,
        701 => ColumnType::Float64,
        790 => ColumnType::Money,
        1082 => ColumnType::Date,
        1083 => ColumnType::Time(digits(modifier)),
        1114 => ColumnType::Timestamp(digits(modifier)),
        1184 => ColumnType::TimestampTz(digits(modifier)),
        1186 => ColumnType::Interval,
        1266 => ColumnType::TimeTz(digits(modifier)),
        1560 => ColumnType::Bits(u32::try_from(modifier).ok()),
        1562 => ColumnType::Bits(None),
        1700 => ColumnType::Numeric { precision_scale: precision_scale(modifier) },
        2950 => ColumnType::Uuid,
        3802 => ColumnType::Jsonb,
        3904 | 3906 | 3908 | 3910 | 3912 | 3926 | 4451 | 4532..=4536 => ColumnType::Range,
        _ => {
            return ARRAYS.iter().find(|(array, _)| *array == oid).and_then(|(_, element)| {
                built_in(*element, modifier).map(|element| ColumnType::Array(Box::new(element)))
            });
        }
    })
}

/// Built-in array types and their elements.
const ARRAYS: [(u32, u32); 25] = [
    (1000, 16),
    (1001, 17),
    (1002, 18),
    (1003, 19),
    (1016, 20),
    (1005, 21),
    (1007, 23),
    (1009, 25),
    (1028, 26),
    (199, 114),
    (1021, 700),
    (1022, 701),
    (791, 790),
    (1014, 1042),
    (1015, 1043),
    (1182, 1082),
    (1183, 1083),
    (1115, 1114),
    (1185, 1184),
    (1187, 1186),
    (1270, 1266),
    (1561, 1560),
    (1231, 1700),
    (2951, 2950),
    (3807, 3802),
];

fn digits(modifier: i32) -> Option<u8> {
    u8::try_from(modifier).ok()
}

/// `numeric(p, s)`'s modifier is `(p << 16 | s & 0x7ff) + 4`, the scale a signed 11-bit number.
fn precision_scale(modifier: i32) -> Option<(u16, i16)> {
    let packed = u32::try_from(modifier.checked_sub(4)?).ok()?;
    let scale = ((packed & 0x7ff) as i16 ^ 0x400) - 0x400;
    Some(((packed >> 16) as u16, scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modifiers_say_how_exact() {
        let numeric = |modifier| match built_in(1700, modifier) {
            Some(ColumnType::Numeric { precision_scale }) => precision_scale,
            other => panic!("{other:?}"),
        };
        assert_eq!(numeric(-1), None);
        assert_eq!(numeric((10 << 16 | 2) + 4), Some((10, 2)));
        assert_eq!(numeric((5 << 16 | (-3 & 0x7ff)) + 4), Some((5, -3)));
        assert_eq!(built_in(1114, 3), Some(ColumnType::Timestamp(Some(3))));
        assert_eq!(built_in(1231, -1), Some(ColumnType::Array(Box::new(built_in(1700, -1).unwrap()))));
        assert_eq!(built_in(1_000_000, -1), None);
    }
}
