//! Pieces of statements.

/// How many values one statement names. Lists are filled up to one of these lengths: few texts stay prepared.
const LENGTHS: [usize; 4] = [1, 16, 100, LONGEST];

/// The longest list.
pub(super) const LONGEST: usize = 500;

/// A list of as many places as some values need, at most [`LONGEST`], and what goes there.
pub(super) fn list<T: Clone>(values: &[T]) -> (String, impl Iterator<Item = T> + '_) {
    let length = LENGTHS.into_iter().find(|length| *length >= values.len()).unwrap_or(values.len());
    let places = vec!["?"; length].join(",");
    let missing = length - values.len();
    let filling = values.last().into_iter().flat_map(move |last| std::iter::repeat_n(last, missing));
    (places, values.iter().chain(filling).cloned())
}

/// A name as SQL writes it, whatever `sql_mode` says.
pub(super) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_filled_up_with_their_last() {
        let (places, values) = list(&[1, 2, 3]);
        assert_eq!(places.matches('?').count(), 16);
        assert_eq!(values.collect::<Vec<_>>(), [&[1, 2][..], &[3; 14]].concat());
        assert_eq!(list(&[0; LONGEST]).1.count(), LONGEST);
    }
}
