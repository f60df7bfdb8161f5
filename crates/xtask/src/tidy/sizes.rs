//! Small files, short functions.

use std::path::Path;

use syn::spanned::Spanned;
use syn::visit::Visit;

const MAX_FILE: usize = 600;
const MAX_FUNCTION: usize = 70;

/// What may be longer, and why: `file` or `file::function`. This list shrinks.
const EXCEPTIONS: &[(&str, &str)] = &[];

/// Which files and functions are too long, and which exceptions are no longer needed.
pub fn problems(root: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    let mut used = Vec::new();
    for file in super::crates(root).iter().flat_map(|path| super::rust_files(path)) {
        let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        let text = std::fs::read_to_string(&file).expect("readable");
        for (place, lines, most) in too_long(&name, &text) {
            if EXCEPTIONS.iter().any(|(exception, _)| *exception == place) {
                used.push(place);
            } else {
                problems.push(format!("{place} has {lines} lines; at most {most} are allowed"));
            }
        }
    }
    let idle = EXCEPTIONS.iter().filter(|(place, _)| !used.iter().any(|one| one == place));
    problems.extend(idle.map(|(place, _)| format!("{place} needs no exception any more: remove it")));
    problems
}

fn too_long(name: &str, text: &str) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    let lines = text.lines().count();
    if lines > MAX_FILE {
        found.push((name.to_owned(), lines, MAX_FILE));
    }
    match syn::parse_file(text) {
        Ok(file) => {
            let mut functions = Functions { file: name, found: &mut found };
            functions.visit_file(&file);
        }
        Err(error) => panic!("{name}: {error}"),
    }
    found
}

struct Functions<'a> {
    file: &'a str,
    found: &'a mut Vec<(String, usize, usize)>,
}

impl Functions<'_> {
    fn check(&mut self, name: &syn::Ident, from: proc_macro2::Span, to: proc_macro2::Span) {
        let lines = to.end().line + 1 - from.start().line;
        if lines > MAX_FUNCTION {
            self.found.push((format!("{}::{name}", self.file), lines, MAX_FUNCTION));
        }
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.check(&item.sig.ident, item.sig.span(), item.block.span());
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.check(&item.sig.ident, item.sig.span(), item.block.span());
        syn::visit::visit_impl_item_fn(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_function_is_found_by_name() {
        let long =
            format!("struct S;\nimpl S {{\nfn long() {{\n{}}}\n}}\nfn short() {{}}", "();\n".repeat(69));
        let found = too_long("a.rs", &long);
        assert_eq!(found, [("a.rs::long".to_owned(), 71, 70)]);
    }

    #[test]
    fn a_long_file_is_found() {
        assert_eq!(too_long("a.rs", &"//\n".repeat(601)), [("a.rs".to_owned(), 601, 600)]);
        assert_eq!(too_long("a.rs", &"//\n".repeat(600)), []);
    }
}
