//! Path patterns: literal segments, `{param}` and a last `{*rest}`.

use crate::target;

/// A piece of a pattern.
enum Piece<'p> {
    Literal(&'p str),
    /// A name without braces and star.
    Param(&'p str),
    Rest(&'p str),
}

/// The parameter names of a path pattern, or why it is not one.
pub fn pattern_params(path: &str) -> Result<Vec<&str>, String> {
    if !path.starts_with('/') {
        return Err(format!("the path {path:?} must begin with \"/\""));
    }
    let mut names = Vec::new();
    let mut filled = String::with_capacity(path.len());
    for piece in pieces(path)? {
        match piece {
            Piece::Literal(text) => filled.push_str(text),
            Piece::Param(name) | Piece::Rest(name) if !is_name(name) => {
                return Err(format!(
                    "the path {path:?} has the parameter {name:?}, expected letters, digits and \"_\""
                ));
            }
            Piece::Param(name) | Piece::Rest(name) if names.contains(&name) => {
                return Err(format!("the path {path:?} has the parameter {name:?} twice"));
            }
            Piece::Rest(_) if !filled.ends_with('/') => {
                return Err(format!("the path {path:?} must have \"/\" before its \"{{*\""));
            }
            Piece::Param(name) | Piece::Rest(name) => {
                names.push(name);
                filled.push('x');
            }
        }
    }
    match target::normalised_path(&filled) {
        Ok(normal) if normal == filled => Ok(names),
        Ok(_) => Err(format!("the path {path:?} would never match: a request's path is normalised (RFC 3986 §6.2.2)")),
        Err(_) => Err(format!("the path {path:?} is not a valid path")),
    }
}

/// A valid pattern with its parameters numbered, so that patterns that match the same paths are equal.
pub(super) fn shape(path: &str) -> String {
    let mut shape = String::with_capacity(path.len());
    for (place, piece) in pieces(path).unwrap_or_default().into_iter().enumerate() {
        match piece {
            Piece::Literal(text) => shape.push_str(text),
            Piece::Param(_) => shape.push_str(&format!("{{p{place}}}")),
            Piece::Rest(_) => shape.push_str("{*rest}"),
        }
    }
    shape
}

fn pieces(path: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    let mut rest = path;
    while let Some(brace) = rest.find(['{', '}']) {
        let (literal, from) = rest.split_at(brace);
        let inner = from.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let (name, after) = inner.ok_or_else(|| format!("the path {path:?} has a brace without its other"))?;
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        pieces.push(match name.strip_prefix('*') {
            Some(_) if !after.is_empty() => return Err(format!("the path {path:?} must end after \"{{{name}}}\"")),
            Some(name) => Piece::Rest(name),
            None => Piece::Param(name),
        });
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Literal(rest));
    }
    Ok(pieces)
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_names_its_parameters() {
        let check = |path, expected: &[&str]| assert_eq!(pattern_params(path).as_deref(), Ok(expected), "{path}");
        check("/", &[]);
        check("/a/b.c/", &[]);
        check("/a/{id}/b/{*rest}", &["id", "rest"]);
        check("/img-{id}.png", &["id"]);
        check("/{*all}", &["all"]);
    }

    #[test]
    fn a_bad_pattern_is_refused() {
        for path in [
            "", "a", "/{", "/}", "/{}", "/{a", "/{{a}}", "/{a b}", "/{a}/{a}", "/{*a}/b", "/x{*a}", "/{*}", "/a/../b",
            "/\u{fc}", "/%61", "/a\\b", "/a b",
        ] {
            assert!(pattern_params(path).is_err(), "{path}");
        }
    }

    #[test]
    fn names_do_not_make_a_shape() {
        assert_eq!(shape("/a/{id}/{*rest}"), shape("/a/{name}/{*path}"));
        assert_ne!(shape("/a/{id}"), shape("/a/{*id}"));
    }
}
