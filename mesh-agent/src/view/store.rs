//! Where resources become a View: typed and checked one by one, so that a bad one is refused by name and the rest counts.

use std::{collections::HashMap, sync::Arc};

use mesh_api::proto::{
    mesh::MeshConfig,
    security::Authorization,
    workload::{Address, address::Type},
};

use super::{Policy, PolicyName, ServiceName, Uid, View, convert, convert_policy};

/// A resource that was not taken, by name, and why; becomes the nack of its response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The resource's name on the stream.
    pub name: String,
    /// The field and what is wrong with it.
    pub reason: String,
}

/// What a resource name stands for. On-demand answers come under the name that was asked, so one workload can have several.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Workload(Uid),
    Service(ServiceName),
}

/// Takes resources in on the control thread and publishes Views.
#[derive(Debug, Default)]
pub struct Store {
    view: View,
    /// Resource name -> what it last held.
    names: HashMap<String, Key>,
    /// How many names hold it; gone with the last.
    holders: HashMap<Key, usize>,
    /// Policies that are in the View only as a refusal.
    refused_policies: HashMap<PolicyName, Policy>,
}

impl Store {
    /// Takes or removes `Address` resources (removed: by resource name). A refused one leaves its last good form.
    pub fn apply_addresses(&mut self, updated: &[(String, Address)], removed: &[String]) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        for name in removed {
            self.release(name);
        }
        for (name, address) in updated {
            if let Err(error) = self.apply_address(name, address) {
                refusals.push(Refusal { name: name.clone(), reason: error.to_string() });
            }
        }
        refusals
    }

    fn apply_address(&mut self, name: &str, address: &Address) -> Result<(), convert::FieldError> {
        let key = match &address.r#type {
            Some(Type::Workload(message)) => {
                let workload = convert::workload(message)?;
                let key = Key::Workload(workload.uid.clone());
                self.view.insert_workload(Arc::new(workload));
                key
            }
            Some(Type::Service(message)) => {
                let service = convert::service(message)?;
                let key = Key::Service(service.name.clone());
                self.view.insert_service(Arc::new(service));
                key
            }
            None => return Err(convert::wrong("type", "neither a workload nor a service")),
        };
        if self.names.get(name) != Some(&key) {
            *self.holders.entry(key.clone()).or_default() += 1;
            self.release(name);
            self.names.insert(name.to_owned(), key);
        }
        Ok(())
    }

    fn release(&mut self, name: &str) {
        let Some(key) = self.names.remove(name) else { return };
        let Some(holders) = self.holders.get_mut(&key) else { return };
        *holders -= 1;
        if *holders > 0 {
            return;
        }
        self.holders.remove(&key);
        match key {
            Key::Workload(uid) => self.view.remove_workload(&uid),
            Key::Service(service) => self.view.remove_service(&service),
        }
    }

    /// Takes or removes `Authorization` resources, named `namespace/name`. A refused one leaves its last good form; one that
    /// was never good is kept as a policy that lets nobody through.
    pub fn apply_policies(&mut self, updated: &[(String, Authorization)], removed: &[String]) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        for name in removed {
            if let Some((namespace, name)) = convert::namespaced(name) {
                let name = PolicyName { namespace, name };
                self.refused_policies.remove(&name);
                self.view.remove_policy(&name);
            }
        }
        for (resource, message) in updated {
            // A name of another shape selects nobody that could be told; a workload that names it is denied as for any
            // policy that the View does not hold.
            let Some((namespace, name)) = convert::namespaced(resource) else {
                refusals.push(Refusal { name: resource.clone(), reason: "name: not namespace/name".into() });
                continue;
            };
            let name = PolicyName { namespace, name };
            match convert_policy::policy(name.clone(), message) {
                Ok(policy) => {
                    self.refused_policies.remove(&name);
                    self.view.insert_policy(Arc::new(policy));
                }
                Err(error) => {
                    self.keep_or_deny(name, message);
                    refusals.push(Refusal { name: resource.clone(), reason: error.to_string() });
                }
            }
        }
        refusals
    }

    /// Puts in the place of policies of which nothing but the name can be read what denies their namespace. A good form that is
    /// there already stays.
    pub fn deny_unreadable_policies(&mut self, refused: &[Refusal]) {
        // No number of the enumerations: neither whom it selects nor what it does is known.
        let unknown = Authorization { scope: -1, action: -1, ..Authorization::default() };
        for (namespace, name) in refused.iter().filter_map(|refusal| convert::namespaced(&refusal.name)) {
            self.keep_or_deny(PolicyName { namespace, name }, &unknown);
        }
    }

    fn keep_or_deny(&mut self, name: PolicyName, message: &Authorization) {
        let was_good = self.view.policy(&name).is_some() && !self.refused_policies.contains_key(&name);
        if !was_good {
            let policy = convert_policy::refused(name.clone(), message);
            self.refused_policies.insert(name, policy.clone());
            self.view.insert_policy(Arc::new(policy));
        }
    }

    /// Takes the mesh's settings.
    ///
    /// # Errors
    /// A field that is no CIDR, address or trust domain; the last good settings stay.
    pub fn apply_mesh(&mut self, config: &MeshConfig) -> Result<(), Refusal> {
        match convert::mesh(config) {
            Ok(settings) => {
                self.view.mesh = settings;
                Ok(())
            }
            Err(error) => Err(Refusal { name: mesh_api::MESH_CONFIG_NAME.into(), reason: error.to_string() }),
        }
    }

    /// A snapshot of the state of now. O(workloads + services + policies) pointer copies.
    pub fn publish(&mut self) -> Arc<View> {
        self.view.generation += 1;
        Arc::new(self.view.clone())
    }
}
