//! In which order services start: what others need comes first.

use std::collections::{BTreeMap, BTreeSet};

use ids::ServiceName;

/// All names so that each comes after all that it needs; of those that may come now, the first by
/// name. Needs that are nobody's name are passed over.
///
/// # Errors
/// Some need each other in a circle, which is returned, its first name repeated at the end.
pub(crate) fn start_order(
    needs: &BTreeMap<ServiceName, Vec<ServiceName>>,
) -> Result<Vec<ServiceName>, Vec<ServiceName>> {
    let mut ordered = Vec::with_capacity(needs.len());
    let mut done = BTreeSet::new();
    while ordered.len() < needs.len() {
        let ready =
            |wanted: &[ServiceName]| wanted.iter().all(|one| done.contains(one) || !needs.contains_key(one));
        let next = needs.iter().find(|(name, wanted)| !done.contains(*name) && ready(wanted));
        let Some((name, _)) = next else { return Err(circle(needs, &done)) };
        done.insert(name.clone());
        ordered.push(name.clone());
    }
    Ok(ordered)
}

/// Everyone who is not done waits for another who is not done: following that leads into a circle.
fn circle(needs: &BTreeMap<ServiceName, Vec<ServiceName>>, done: &BTreeSet<ServiceName>) -> Vec<ServiceName> {
    let blocked = |name: &ServiceName| !done.contains(name) && needs.contains_key(name);
    let mut path: Vec<ServiceName> = needs.keys().filter(|name| blocked(name)).take(1).cloned().collect();
    while let Some(last) = path.last() {
        let Some(next) = needs.get(last).and_then(|wanted| wanted.iter().find(|name| blocked(name))) else {
            break;
        };
        let next = next.clone();
        if let Some(start) = path.iter().position(|name| *name == next) {
            path.push(next);
            path.drain(..start);
            break;
        }
        path.push(next);
    }
    path
}

/// A name and all that it needs, directly or not.
pub(crate) fn closure(
    needs: &BTreeMap<ServiceName, Vec<ServiceName>>,
    name: &ServiceName,
) -> BTreeSet<ServiceName> {
    let mut found = BTreeSet::new();
    let mut open = vec![name.clone()];
    while let Some(name) = open.pop() {
        if found.insert(name.clone()) {
            open.extend(needs.get(&name).into_iter().flatten().cloned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &[&str])]) -> BTreeMap<ServiceName, Vec<ServiceName>> {
        let name = |text: &&str| text.parse().unwrap();
        edges.iter().map(|(one, needs)| (name(one), needs.iter().map(name).collect())).collect()
    }

    fn names(text: &[ServiceName]) -> String {
        text.iter().map(ServiceName::as_str).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_others_need_comes_first() {
        let services =
            graph(&[("a", &["c"]), ("b", &[]), ("c", &["d", "b"]), ("d", &["gone"]), ("e", &["a"])]);
        assert_eq!(names(&start_order(&services).unwrap()), "b d c a e");
        let chain = closure(&services, &"a".parse().unwrap());
        assert_eq!(names(&chain.into_iter().collect::<Vec<_>>()), "a b c d gone");
    }

    #[test]
    fn a_circle_is_named() {
        let services = graph(&[("a", &["b"]), ("b", &["c"]), ("c", &["d"]), ("d", &["b"]), ("e", &[])]);
        assert_eq!(names(&start_order(&services).unwrap_err()), "b c d b");
        assert_eq!(names(&start_order(&graph(&[("a", &["a"])])).unwrap_err()), "a a");
    }

    #[test]
    fn in_random_graphs_an_order_respects_every_need_or_a_circle_is_real() {
        let mut state = 7u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..20_000 {
            let size = 1 + random(7);
            let name = |n: u64| format!("s{n}").parse::<ServiceName>().unwrap();
            let mut services = BTreeMap::new();
            for one in 0..size {
                let needs = (0..random(3)).map(|_| name(random(size))).collect();
                services.insert(name(one), needs);
            }
            match start_order(&services) {
                Ok(order) => {
                    assert_eq!(order.len(), services.len());
                    for (place, one) in order.iter().enumerate() {
                        assert!(
                            services[one].iter().all(|need| order[..place].contains(need)),
                            "{services:?} {order:?}"
                        );
                    }
                }
                Err(circle) => {
                    assert!(circle.len() > 1 && circle.first() == circle.last(), "{services:?} {circle:?}");
                    for pair in circle.windows(2) {
                        assert!(services[&pair[0]].contains(&pair[1]), "{services:?} {circle:?}");
                    }
                }
            }
        }
    }
}
