//! Users and groups by name, as the sprite's own `/etc` has them. (The C library would look them up with
//! plug-ins that a static program can't load.)

use std::path::Path;

use super::{Code, Fault};

/// Who a file is to belong to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Account {
    Id(u32),
    Name(String),
}

/// Where names of accounts are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    User,
    Group,
}

impl Kind {
    const fn file(self) -> &'static str {
        match self {
            Self::User => "/etc/passwd",
            Self::Group => "/etc/group",
        }
    }
}

impl Account {
    /// A number, or else a name.
    pub(crate) fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Id)
    }

    /// Its number.
    pub(super) fn id(&self, kind: Kind) -> Result<u32, Fault> {
        match self {
            Self::Id(id) => Ok(*id),
            Self::Name(name) => {
                let path = Path::new(kind.file());
                let text = std::fs::read_to_string(path).map_err(super::fault::at(path))?;
                find(&text, name).ok_or_else(|| {
                    Fault::new(Code::Invalid, format!("{} has no {name:?}", path.display()), path)
                })
            }
        }
    }
}

/// The number of `name` in a file like `/etc/passwd`.
fn find(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_and_numbers_are_numbers() {
        let passwd =
            "root:x:0:0:root:/root:/bin/bash\n# comment\nbroken\nsprite:x:1000:1000::/home/sprite:\n";
        assert_eq!(find(passwd, "sprite"), Some(1000));
        assert_eq!(find(passwd, "root"), Some(0));
        assert_eq!((find(passwd, "nobody"), find(passwd, "broken"), find(passwd, "")), (None, None, None));
        assert_eq!(Account::parse("1000").id(Kind::User), Ok(1000));
    }
}
