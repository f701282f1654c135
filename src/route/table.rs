//! The search for a request's route.

use std::collections::HashMap;
use std::sync::Arc;

use http::Method;
use matchit::{InsertError, Router};
use smallvec::SmallVec;

use super::pattern::{pattern_params, shape};
use super::{Params, Route};
use crate::key::{KeyRules, Tag};
use crate::target::Target;

/// The ends of a shape that matches the rest of a path.
const REST: &str = "{*rest}";

/// The routes of one host and path shape, by index.
type Sharing = SmallVec<[usize; 2]>;

/// The route that a request matched, with its parameters.
#[derive(Debug)]
pub struct Match<'a> {
    /// The route.
    pub route: &'a Arc<Route>,
    /// Its place in the table, for counters.
    pub index: usize,
    /// Where its parameters' values are in the path.
    pub params: Params,
}

/// The same, for as long as is needed.
#[derive(Clone, Debug)]
pub struct Matched {
    /// The route.
    pub route: Arc<Route>,
    /// Its place in the table, for counters.
    pub index: usize,
    /// Where its parameters' values are in the path.
    pub params: Params,
}

impl From<Match<'_>> for Matched {
    fn from(matched: Match<'_>) -> Self {
        Self { route: Arc::clone(matched.route), index: matched.index, params: matched.params }
    }
}

/// All routes of a configuration, ready to be searched.
pub struct RouteTable {
    routes: Box<[Arc<Route>]>,
    hosts: HashMap<Box<str>, Router<Sharing>>,
    any_host: Router<Sharing>,
}

/// Two routes that match the same requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The index of the route that could not be added.
    pub index: usize,
    /// Why, for people.
    pub reason: String,
}

impl RouteTable {
    /// Builds the table; all conflicts (same host, path shape and a common method; bad patterns) at once.
    pub fn new(routes: Vec<Route>) -> Result<Self, Vec<Conflict>> {
        let mut conflicts = Vec::new();
        let mut hosts: HashMap<Option<&str>, Shapes<'_>> = HashMap::new();
        for (index, route) in routes.iter().enumerate() {
            match pattern_params(&route.path) {
                Ok(_) => {
                    let shapes = hosts.entry(route.host.as_deref()).or_insert_with(|| Shapes::new(&routes));
                    conflicts.extend(shapes.add(index));
                }
                Err(reason) => conflicts.push(Conflict { index, reason }),
            }
        }
        let mut routers: HashMap<Option<Box<str>>, Router<Sharing>> =
            hosts.into_iter().map(|(host, shapes)| (host.map(Into::into), shapes.router(&mut conflicts))).collect();
        if !conflicts.is_empty() {
            conflicts.sort_by_key(|conflict| conflict.index);
            return Err(conflicts);
        }
        let any_host = routers.remove(&None).unwrap_or_default();
        let hosts = routers.into_iter().filter_map(|(host, router)| Some((host?, router))).collect();
        Ok(Self { routes: routes.into_iter().map(Arc::new).collect(), hosts, any_host })
    }

    /// The routes in the order of the file.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// The route for a request: its host's routes before those of any host, most specific path, then method.
    pub fn find(&self, target: &Target, method: &Method) -> Option<Match<'_>> {
        // Most configurations limit no route to a host.
        let of_host = if self.hosts.is_empty() { None } else { self.hosts.get(target.authority.host()) };
        let found = of_host.and_then(|router| self.find_in(router, target, method));
        found.or_else(|| self.find_in(&self.any_host, target, method))
    }

    fn find_in<'a>(&'a self, router: &'a Router<Sharing>, target: &Target, method: &Method) -> Option<Match<'a>> {
        let matched = router.at(target.path()).ok()?;
        let with = |method| matched.value.iter().copied().find(|index| self.routes[*index].methods.contains(method));
        let index = with(method).or_else(|| (*method == Method::HEAD).then(|| with(&Method::GET)).flatten())?;
        let params = Params::of(target.path(), matched.params.iter().map(|(_, value)| value));
        Some(Match { route: &self.routes[index], index, params })
    }

    /// Whether a route that caches covers the GET of this target (for invalidation).
    pub fn caches(&self, target: &Target) -> bool {
        self.find(target, &Method::GET).is_some_and(|found| found.route.caching.is_some())
    }

    /// The tags of all that is stored for a target's URL: as each route that caches it keys it, whatever the method, and
    /// as it is, for a process with other routes. None where no route caches it.
    pub fn url_tags(&self, target: &Target) -> Vec<Tag> {
        let of_host = self.hosts.get(target.authority.host());
        let keys = self.keys_in(of_host.into_iter().chain([&self.any_host]), target);
        distinct(keys.map(|key| Tag::keyed_url(target, key)), Tag::url(target))
    }

    /// The same for the URLs of every host, where no route that caches has the host in its key.
    pub fn url_tags_of_all_hosts(&self, target: &Target) -> Vec<Tag> {
        let keys = self.keys_in(self.hosts.values().chain([&self.any_host]), target);
        distinct(keys.map(|key| Tag::keyed_url(target, key).without_host()), Tag::url(target).without_host())
    }

    /// Whether all that is stored answers for every host: no route that caches has the host in its key.
    pub fn shares_among_hosts(&self) -> bool {
        let mut keys = self.routes.iter().filter_map(|route| Some(&route.caching.as_ref()?.key)).peekable();
        keys.peek().is_some() && keys.all(|key| !key.host)
    }

    /// The key rules of the routes of any method that cache a target's path.
    fn keys_in<'a>(
        &'a self,
        routers: impl Iterator<Item = &'a Router<Sharing>>,
        target: &Target,
    ) -> impl Iterator<Item = &'a KeyRules> {
        let sharing = routers.filter_map(|router| router.at(target.path()).ok());
        let indices = sharing.flat_map(|matched| matched.value.iter().copied());
        indices.filter_map(|index| Some(&self.routes[index].caching.as_ref()?.key))
    }
}

/// Each of the tags once, and after them the last; none where there are none before it.
fn distinct(tags: impl Iterator<Item = Tag>, last: Tag) -> Vec<Tag> {
    let mut tags = tags.peekable();
    let last = tags.peek().is_some().then_some(last);
    let mut distinct = Vec::new();
    for tag in tags.chain(last) {
        if !distinct.contains(&tag) {
            distinct.push(tag);
        }
    }
    distinct
}

/// The path shapes of one host while the table is built, in the order of the file.
struct Shapes<'r> {
    routes: &'r [Route],
    places: HashMap<String, usize>,
    sharing: Vec<(String, Sharing)>,
}

impl<'r> Shapes<'r> {
    fn new(routes: &'r [Route]) -> Self {
        Self { routes, places: HashMap::new(), sharing: Vec::new() }
    }

    /// Adds a route, unless another has its shape and one of its methods.
    fn add(&mut self, index: usize) -> Option<Conflict> {
        let route = &self.routes[index];
        let shape = shape(&route.path);
        let shared = |other: &Route| other.methods.iter().find(|method| route.methods.contains(method)).cloned();
        for other in self.of_shape(&shape).iter().map(|other| &self.routes[*other]) {
            if let Some(method) = shared(other) {
                let reason = format!("the route {:?} has the same host and path and {method}", other.name);
                return Some(Conflict { index, reason });
            }
        }
        self.push(shape, index);
        None
    }

    fn of_shape(&self, shape: &str) -> &[usize] {
        self.places.get(shape).map_or(&[], |place| &self.sharing[*place].1)
    }

    fn push(&mut self, shape: String, index: usize) {
        let place = *self.places.entry(shape.clone()).or_insert(self.sharing.len());
        if place == self.sharing.len() {
            self.sharing.push((shape, Sharing::new()));
        }
        self.sharing[place].1.push(index);
    }

    /// The router of all shapes. What ends in `{*rest}` matches an empty rest too, after the routes that say so.
    fn router(mut self, conflicts: &mut Vec<Conflict>) -> Router<Sharing> {
        let with_rest: Vec<(String, Sharing)> = self
            .sharing
            .iter()
            .filter_map(|(shape, sharing)| Some((shape.strip_suffix(REST)?.to_owned(), sharing.clone())))
            .collect();
        for (shape, sharing) in with_rest {
            sharing.into_iter().for_each(|index| self.push(shape.clone(), index));
        }
        let mut router = Router::new();
        for (shape, sharing) in &self.sharing {
            if let Err(error) = router.insert(shape.as_str(), sharing.clone()) {
                conflicts.push(Conflict { index: sharing[0], reason: self.reason(error) });
            }
        }
        router
    }

    fn reason(&self, error: InsertError) -> String {
        match error {
            InsertError::Conflict { with } => match self.of_shape(&with).first() {
                Some(other) => {
                    let Route { name, path, .. } = &self.routes[*other];
                    format!("its path cannot be told from that of the route {name:?}, {path:?}")
                }
                None => format!("its path cannot be told from that of another route, {with:?}"),
            },
            error => error.to_string().to_lowercase(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{FieldEdits, ForwardFields};
    use crate::target::{Authority, Scheme};

    fn route(name: &str, host: Option<&str>, path: &str, methods: &[Method]) -> Route {
        Route {
            name: name.into(),
            host: host.map(Into::into),
            path: path.into(),
            methods: methods.into(),
            upstream: "u".into(),
            strip_prefix: "".into(),
            request_headers: FieldEdits::default(),
            response_headers: FieldEdits::default(),
            forward_headers: ForwardFields::All,
            request_body_max: 0,
            first_byte_timeout: None,
            upgrade: Box::new([]),
            caching: None,
        }
    }

    fn table() -> RouteTable {
        let get = [Method::GET];
        RouteTable::new(vec![
            route("product", None, "/products/{id}", &get),
            route("edit", None, "/products/{key}", &[Method::POST, Method::PUT]),
            route("new", None, "/products/new", &get),
            route("files", None, "/files/{*path}", &[Method::GET, Method::POST]),
            route("listing", None, "/files/", &get),
            route("shop", Some("shop.example"), "/{*all}", &get),
            route("head", None, "/h", &get),
            route("head2", None, "/h", &[Method::HEAD]),
        ])
        .unwrap_or_else(|conflicts| panic!("{conflicts:?}"))
    }

    fn check(table: &RouteTable, method: &Method, host: &str, path: &str, expected: Option<(&str, &[(&str, &str)])>) {
        let authority = Authority::parse(host, Scheme::Http).unwrap();
        let target = Target::new(Scheme::Http, authority, path, None).unwrap();
        let found = table.find(&target, method);
        let name = found.as_ref().map(|found| &*found.route.name);
        assert_eq!(name, expected.map(|(name, _)| name), "{method} {host}{path}");
        if let (Some(found), Some((_, params))) = (found, expected) {
            assert_eq!(*table.routes()[found.index].name, *found.route.name);
            let names = pattern_params(&found.route.path).unwrap();
            let value = |(place, name)| (name, found.params.value(place, target.path()));
            let found: Vec<(&str, &str)> = names.into_iter().enumerate().map(value).collect();
            assert_eq!(found, params, "{method} {host}{path}");
        }
    }

    #[test]
    fn the_most_specific_path_is_found_then_the_method() {
        let table = table();
        let check = |method, path, expected| check(&table, &method, "a", path, expected);
        check(Method::GET, "/products/1", Some(("product", &[("id", "1")])));
        check(Method::HEAD, "/products/1", Some(("product", &[("id", "1")])));
        check(Method::PUT, "/products/1", Some(("edit", &[("key", "1")])));
        check(Method::DELETE, "/products/1", None);
        check(Method::GET, "/products/new", Some(("new", &[])));
        check(Method::GET, "/products/", None);
        check(Method::GET, "/products/1/x", None);
        check(Method::HEAD, "/h", Some(("head2", &[])));
    }

    #[test]
    fn a_rest_may_be_empty() {
        let table = table();
        check(&table, &Method::GET, "a", "/files/x/y", Some(("files", &[("path", "x/y")])));
        check(&table, &Method::GET, "a", "/files/", Some(("listing", &[])));
        check(&table, &Method::POST, "a", "/files/", Some(("files", &[("path", "")])));
        check(&table, &Method::GET, "a", "/files", None);
        check(&table, &Method::GET, "shop.example", "/", Some(("shop", &[("all", "")])));
    }

    #[test]
    fn the_hosts_routes_come_first() {
        let table = table();
        check(&table, &Method::GET, "shop.example:81", "/products/1", Some(("shop", &[("all", "products/1")])));
        check(&table, &Method::PUT, "shop.example", "/products/1", Some(("edit", &[("key", "1")])));
        check(&table, &Method::GET, "other.example", "/x", None);
    }

    fn configured(routes: &str) -> RouteTable {
        let text = format!("[upstream.api]\nurl = \"http://a.test\"\n{routes}");
        let (config, _) = crate::config::parse("f", &text).unwrap_or_else(|problems| panic!("{problems:#?}"));
        RouteTable::new(config.routes).unwrap_or_else(|conflicts| panic!("{conflicts:?}"))
    }

    fn target(path: &str, query: Option<&str>) -> Target {
        Target::new(Scheme::Http, Authority::parse("a.example", Scheme::Http).unwrap(), path, query).unwrap()
    }

    #[test]
    fn a_url_has_the_tags_of_every_route_that_caches_it() {
        let table = configured(
            "[[route]]\npath = \"/a\"\nkey = { query = \"none\" }\n\
             [[route]]\nname = \"posts\"\npath = \"/a\"\nmethods = [\"POST\"]\nkey = { body = \"raw\", host = false }\n\
             [[route]]\nname = \"hosts\"\nhost = \"a.example\"\npath = \"/{*rest}\"\nkey = { sort_query = false }\n\
             [[route]]\npath = \"/off\"\ncache = false\n",
        );
        let check = |path, expected: &[&str]| {
            let tags = table.url_tags(&target(path, Some("y=2&x=1")));
            let expected: Vec<Tag> = expected.iter().map(|url| Tag::Url((*url).into())).collect();
            assert_eq!(tags, expected, "{path}");
        };
        check("/a", &["a.example/a?y=2&x=1", "a.example/a", "/a?x=1&y=2"]);
        check("/b", &["a.example/b?y=2&x=1"]);
        let authority = Authority::parse("b.example", Scheme::Http).unwrap();
        assert_eq!(table.url_tags(&Target::new(Scheme::Http, authority, "/off", None).unwrap()), []);
        assert!(!table.shares_among_hosts());
    }

    #[test]
    fn urls_without_host_mean_all_hosts_where_no_key_has_one() {
        let table = configured(
            "[[route]]\npath = \"/a\"\nkey = { host = false }\n\
             [[route]]\nname = \"b\"\nhost = \"b.example\"\npath = \"/a\"\nkey = { host = false, query = \"none\" }\n\
             [[route]]\npath = \"/off\"\ncache = false\n",
        );
        assert!(table.shares_among_hosts());
        let tags = table.url_tags_of_all_hosts(&target("/a", Some("x=1")));
        assert_eq!(tags.len(), 2);
        assert!(tags.contains(&Tag::Url("/a?x=1".into())) && tags.contains(&Tag::Url("/a".into())), "{tags:?}");
        assert!(!configured("[[route]]\npath = \"/off\"\ncache = false\n").shares_among_hosts());
    }

    #[test]
    fn all_conflicts_are_told_at_once() {
        let get = [Method::GET];
        let conflicts = RouteTable::new(vec![
            route("a", None, "/a/{id}", &get),
            route("b", None, "/a/{key}", &[Method::POST, Method::GET]),
            route("c", None, "no", &get),
            route("d", None, "/a/{*rest}", &get),
            route("e", Some("h"), "/a/{id}", &get),
        ]);
        let conflicts = conflicts.err().unwrap_or_default();
        let told: Vec<(usize, &str)> = conflicts.iter().map(|conflict| (conflict.index, &*conflict.reason)).collect();
        assert_eq!(
            told,
            [
                (1, "the route \"a\" has the same host and path and GET"),
                (2, "the path \"no\" must begin with \"/\""),
                (3, "its path cannot be told from that of the route \"a\", \"/a/{id}\""),
            ]
        );
    }
}
