//! Who has which roles, and what these permit.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use portcullis_plugin::{BuildError, Principal, SourceFile, SourcePosition};
use schemars::JsonSchema;
use serde::Deserialize;

use super::condition::Condition;
use crate::claims::texts;

/// A role.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RoleConfig {
    /// Roles of which it has all permissions, and as which it counts. Default: none.
    inherits: Vec<String>,
    /// What it may: `orders:read`, `orders:*` or `*`. Default: nothing.
    permissions: Vec<String>,
}

/// Roles with all that they inherit, and who has them.
#[derive(Debug, Default)]
pub(super) struct Roles {
    known: HashMap<String, Role>,
    assigned: HashMap<String, Vec<String>>,
    claims: Vec<String>,
}

#[derive(Debug, Default, Clone)]
struct Role {
    /// The role itself and all that it inherits from.
    counts_as: BTreeSet<String>,
    permissions: Vec<Permission>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Permission {
    Exact(String),
    /// All that begin like this.
    Below(String),
}

impl Permission {
    fn parse(text: &str) -> Self {
        match text.strip_suffix('*') {
            Some(begin) => Permission::Below(begin.to_owned()),
            None => Permission::Exact(text.to_owned()),
        }
    }

    fn contains(&self, permission: &str) -> bool {
        match self {
            Permission::Exact(exact) => exact == permission,
            Permission::Below(begin) => permission.starts_with(begin.as_str()),
        }
    }
}

/// What a caller has.
pub(super) struct Has<'a> {
    roles: &'a Roles,
    names: Vec<&'a str>,
    pub(super) principal: &'a Principal,
}

impl Has<'_> {
    pub(super) fn role(&self, role: &str) -> bool {
        self.names.iter().any(|name| {
            *name == role || self.roles.known.get(*name).is_some_and(|known| known.counts_as.contains(role))
        })
    }

    pub(super) fn permission(&self, permission: &str) -> bool {
        let known = self.names.iter().filter_map(|name| self.roles.known.get(*name));
        known.flat_map(|role| &role.permissions).any(|granted| granted.contains(permission))
    }
}

impl Roles {
    pub(super) fn build(
        roles: BTreeMap<String, RoleConfig>,
        assigned: BTreeMap<String, Vec<String>>,
        claims: Vec<String>,
    ) -> Result<Self, BuildError> {
        for (name, role) in &roles {
            for (index, permission) in role.permissions.iter().enumerate() {
                let star = permission.find('*').unwrap_or(permission.len());
                if permission.is_empty() || star + 1 < permission.len() {
                    let at = format!("roles.{name}.permissions[{index}]");
                    return Err(BuildError::at(at, format!("`{permission}` is not a permission"))
                        .help("write `orders:read`, `orders:*` or `*`"));
                }
            }
            if let Some(index) = role.inherits.iter().position(|other| !roles.contains_key(other)) {
                let at = format!("roles.{name}.inherits[{index}]");
                return Err(BuildError::at(at, format!("there is no role `{}`", role.inherits[index])));
            }
        }
        let known = roles.keys().map(|name| {
            let mut role = Role::default();
            gather(&roles, name, &mut role);
            // A circle leads back to where it began.
            let circle = roles[name].inherits.iter().any(|other| {
                let mut inherited = Role::default();
                gather(&roles, other, &mut inherited);
                inherited.counts_as.contains(name)
            });
            match circle {
                true => Err(BuildError::at(format!("roles.{name}.inherits"), "it inherits from itself")),
                false => Ok((name.clone(), role)),
            }
        });
        let known = known.collect::<Result<_, _>>()?;
        Ok(Roles { known, assigned: assigned.into_iter().collect(), claims })
    }

    /// Adds the callers of a file, one a line.
    pub(super) fn read(&mut self, at: &str, file: &SourceFile) -> Result<(), BuildError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Line {
            id: String,
            roles: Vec<String>,
        }

        let text = file.text().map_err(|message| BuildError::at(at, message))?;
        for (number, line) in text.lines().enumerate() {
            let begun = line.trim_start();
            if begun.is_empty() || begun.starts_with('#') {
                continue;
            }
            let Line { id, roles } = serde_json::from_str(line).map_err(|wrong| {
                let message = wrong.to_string();
                let end = message.rfind(" at line ").unwrap_or(message.len());
                let position = SourcePosition {
                    file: file.path.clone(),
                    text: text.into(),
                    line: number + 1,
                    column: wrong.column().max(1),
                };
                BuildError::at(at, &message[..end])
                    .help("a line is as `{\"id\": \"ann\", \"roles\": [\"editor\"]}`")
                    .within(position)
            })?;
            self.assigned.entry(id).or_default().extend(roles);
        }
        Ok(())
    }

    /// What a caller has, wherever it comes from.
    pub(super) fn of<'a>(&'a self, principal: &'a Principal) -> Has<'a> {
        let assigned = self.assigned.get(&principal.id).into_iter().flatten();
        let mut names: Vec<&str> = principal.roles.iter().chain(assigned).map(String::as_str).collect();
        for path in &self.claims {
            names.extend(texts(&principal.claims, path));
        }
        Has { roles: self, names, principal }
    }

    /// A permission that a condition wants and no role has.
    pub(super) fn nobody_has<'c>(&self, condition: &'c Condition) -> Option<&'c str> {
        let granted = || self.known.values().flat_map(|role| &role.permissions);
        condition.permissions().find(|wanted| !granted().any(|granted| granted.contains(wanted)))
    }
}

fn gather(roles: &BTreeMap<String, RoleConfig>, name: &str, into: &mut Role) {
    if !into.counts_as.insert(name.to_owned()) {
        return;
    }
    let Some(role) = roles.get(name) else { return };
    into.permissions.extend(role.permissions.iter().map(|text| Permission::parse(text)));
    role.inherits.iter().for_each(|other| gather(roles, other, into));
}
