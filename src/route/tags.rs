//! The purge tags of a route's responses that configuration and URL give.

use percent_encoding::percent_decode_str;

use super::{Params, Route};
use crate::key::Tag;
use crate::target::Target;

/// A tag with `{param}` from the route's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagTemplate(Box<[TagPart]>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum TagPart {
    Literal(Box<str>),
    /// The parameter at this place of the route's pattern.
    Param(usize),
}

/// A tag template that cannot be parsed, and why; the text is for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadTemplate(pub String);

impl TagTemplate {
    /// Parses `product:{id}`; every `{param}` must be one of the path's `params`.
    pub fn parse(text: &str, params: &[&str]) -> Result<Self, BadTemplate> {
        if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(BadTemplate(format!("the tag {text:?} must be a word without white space")));
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(brace) = rest.find(['{', '}']) {
            let (literal, from) = rest.split_at(brace);
            let inner = from.strip_prefix('{').and_then(|inner| inner.split_once('}'));
            let (name, after) =
                inner.ok_or_else(|| BadTemplate(format!("the tag {text:?} has a brace without its other")))?;
            let Some(place) = params.iter().position(|param| *param == name) else {
                let known = params.join(", ");
                return Err(BadTemplate(format!("the tag {text:?} has {{{name}}}, the path has [{known}]")));
            };
            if !literal.is_empty() {
                parts.push(TagPart::Literal(literal.into()));
            }
            parts.push(TagPart::Param(place));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(TagPart::Literal(rest.into()));
        }
        Ok(Self(parts.into()))
    }

    /// The tag for the parameters of one request's path, percent-decoded where what comes out is text: the tag of `/p/a%20b` is
    /// `product:a b`, as who purges it knows it.
    pub fn expand(&self, params: &Params, path: &str) -> Box<str> {
        let mut tag = String::new();
        for part in &self.0 {
            match part {
                TagPart::Literal(text) => tag.push_str(text),
                TagPart::Param(place) => {
                    let value = params.value(*place, path);
                    let decoded = percent_decode_str(value).decode_utf8().ok();
                    let is_text = |text: &str| !text.chars().any(char::is_control);
                    tag.push_str(decoded.as_deref().filter(|text| is_text(text)).unwrap_or(value));
                }
            }
        }
        tag.into()
    }
}

/// The tags of a request that derive from configuration and URL, made only when the ledger must be asked.
pub struct ConfiguredTags<'a> {
    /// Its route.
    pub route: &'a Route,
    /// Where its parameters' values are in the target's path.
    pub params: &'a Params,
    /// Its target.
    pub target: &'a Target,
}

impl ConfiguredTags<'_> {
    /// Every tag: all, route, host, URL, path prefixes (the root and up to 8 segments), and the route's own. URL and
    /// host are those of the key: what differs in nothing that is keyed has the same tags.
    pub fn tags(&self) -> Vec<Tag> {
        let caching = self.route.caching.as_ref();
        let (key, own) = (caching.map(|it| &it.key), caching.map_or(&[][..], |it| &it.tags));
        let url = key.map_or_else(|| Tag::url(self.target), |key| Tag::keyed_url(self.target, key));
        let placed = std::iter::once(Tag::host(self.target)).chain(Tag::prefixes(self.target));
        let mut tags = Vec::with_capacity(16 + own.len());
        tags.extend([Tag::All, Tag::Route((*self.route.name).into()), url]);
        if key.is_none_or(|key| key.host) {
            tags.extend(placed);
        } else {
            tags.extend(placed.map(Tag::without_host));
        }
        tags.extend(own.iter().map(|template| Tag::Surrogate(template.expand(self.params, self.target.path()))));
        tags
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{Authority, Scheme};

    fn check(text: &str, expected: Option<&str>) {
        let path = "/42/a";
        let params = Params::of(path, [&path[1..3], &path[4..]].into_iter());
        let tag = TagTemplate::parse(text, &["id", "shop"]).ok().map(|template| template.expand(&params, path));
        assert_eq!(tag.as_deref(), expected, "{text:?}");
    }

    #[test]
    fn a_template_takes_the_values_of_its_parameters() {
        check("product", Some("product"));
        check("product:{id}", Some("product:42"));
        check("{shop}{id}-x", Some("a42-x"));
    }

    #[test]
    fn a_response_whose_key_has_no_host_has_no_tag_with_one() {
        let text = "[upstream.api]\nurl = \"http://a.test\"\n[[route]]\nname = \"r\"\npath = \"/{*rest}\"\n\
                    tags = [\"t\"]\nkey = { host = false, query = \"tracking\" }\n";
        let (config, _) = crate::config::parse("f", text).unwrap_or_else(|problems| panic!("{problems:#?}"));
        let authority = Authority::parse("a.example", Scheme::Http).unwrap();
        let target = Target::new(Scheme::Http, authority, "/a", Some("gclid=1")).unwrap();
        let tags = ConfiguredTags { route: &config.routes[0], params: &Params::default(), target: &target }.tags();
        let expected = [
            Tag::All,
            Tag::Route("r".into()),
            Tag::Url("/a".into()),
            Tag::Host("".into()),
            Tag::Prefix("/".into()),
            Tag::Prefix("/a/".into()),
            Tag::Surrogate("t".into()),
        ];
        assert_eq!(tags, expected);
    }

    #[test]
    fn a_bad_template_is_refused() {
        for text in ["", "a b", "{", "a}", "{}", "{other}", "{id"] {
            check(text, None);
        }
    }
}
