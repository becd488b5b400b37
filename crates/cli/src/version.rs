//! `version`: the plugin's own version, and the operator's image where it can be read.

use flywheel_api::names::{FLYWHEEL, LABEL_COMPONENT, LABEL_NAME};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt as _;
use kube::api::ListParams;

use crate::cluster::{Cluster, LIST_MAX};
use crate::error::Error;
use crate::text::clean;

/// Value of the component label on the chart's Deployment.
const OPERATOR: &str = "operator";

/// The installed operators: of the whole cluster, or of the namespace that the user named.
pub(crate) async fn operators(cluster: &Cluster, in_namespace: bool) -> Result<Vec<Deployment>, Error> {
    let labels = format!("{LABEL_NAME}={FLYWHEEL},{LABEL_COMPONENT}={OPERATOR}");
    if in_namespace {
        return Ok(cluster.list(&labels).await?.0);
    }
    let api = cluster.api_of_all::<Deployment>();
    let params = ListParams::default().labels(&labels).limit(LIST_MAX);
    let list = cluster
        .ask("list deployments of the cluster", api.list(&params))
        .await?;
    Ok(list.items)
}

/// What was found, as text. A cluster that cannot be read is no failure of this command.
pub(crate) fn render(operators: &Result<Vec<Deployment>, Error>, in_namespace: bool) -> String {
    let mut text = format!("plugin    {}\n", env!("CARGO_PKG_VERSION"));
    match operators {
        Ok(found) if found.is_empty() => text.push_str("operator  not installed here\n"),
        Ok(found) => found.iter().for_each(|operator| text.push_str(&line(operator))),
        Err(error) => {
            let hint = match error {
                Error::Forbidden { .. } if !in_namespace => " (or name the operator's namespace with -n)",
                _ => "",
            };
            text.push_str(&format!("operator  not known: {error}{hint}\n"));
        }
    }
    text
}

fn line(operator: &Deployment) -> String {
    let containers = operator
        .spec
        .as_ref()
        .and_then(|s| s.template.spec.as_ref())
        .map(|s| s.containers.as_slice());
    let containers = containers.unwrap_or_default();
    let container = containers.iter().find(|c| c.name == OPERATOR).or(containers.first());
    let image = container.and_then(|c| c.image.as_deref()).unwrap_or("no image");
    let status = operator.status.as_ref();
    clean(&format!(
        "operator  {image} (namespace {}, {} of {} ready)",
        operator.namespace().unwrap_or_default(),
        status.and_then(|s| s.ready_replicas).unwrap_or(0),
        operator.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    )) + "\n"
}

#[cfg(test)]
mod tests {
    use flywheel_testkit::{Scenario, Step};
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn the_operators_image_is_told_and_a_refusal_does_no_harm() {
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "flywheel-operator", "namespace": "flywheel-system"},
            "spec": {"replicas": 2, "selector": {}, "template": {"spec": {"containers": [
                {"name": "mesh", "image": "m"}, {"name": "operator", "image": "r/flywheel-operator:0.1.0"}
            ]}}},
            "status": {"readyReplicas": 1}
        });
        let forbidden = "deployments.apps is forbidden: User \"u\" cannot list resource \"deployments\"";
        let (client, scenario) = Scenario::start(vec![
            Step::list("/apis/apps/v1/deployments", "Deployment", "apps/v1", vec![deployment]),
            Step::list(
                "/apis/apps/v1/namespaces/team/deployments",
                "Deployment",
                "apps/v1",
                vec![],
            ),
            Step::refuse("GET", "/apis/apps/v1/deployments", 403, "Forbidden", forbidden),
        ]);
        let cluster = Cluster::of(client, "team");
        let own = format!("plugin    {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(
            render(&operators(&cluster, false).await, false),
            format!("{own}operator  r/flywheel-operator:0.1.0 (namespace flywheel-system, 1 of 2 ready)\n")
        );
        assert_eq!(
            render(&operators(&cluster, true).await, true),
            format!("{own}operator  not installed here\n")
        );
        let text = render(&operators(&cluster, false).await, false);
        assert!(
            text.starts_with(&own) && text.contains("cannot list resource") && text.contains("with -n"),
            "{text}"
        );
        scenario.finish().await;
    }
}
