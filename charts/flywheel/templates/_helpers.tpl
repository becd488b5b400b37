{{- define "flywheel.operator" -}}
{{- printf "%s-operator" (trunc 40 .Release.Name | trimSuffix "-") -}}
{{- end }}

{{- define "flywheel.user" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "flywheel.operator" . }}
{{- end }}

{{/* Labels of every object of the chart. Not managed-by=flywheel: that marks what the operator makes. */}}
{{- define "flywheel.labels" -}}
app.kubernetes.io/name: flywheel
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: flywheel
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* Training pods let in only pods with name and component as here. */}}
{{- define "flywheel.selector" -}}
app.kubernetes.io/name: flywheel
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{/* Reference of an image: dict "root" $ "name" "trainer" */}}
{{- define "flywheel.image" -}}
{{- $root := .root -}}
{{- default (printf "%s/flywheel-%s:%s" $root.Values.registry .name (default $root.Chart.AppVersion $root.Values.tag)) (get $root.Values.images .name) -}}
{{- end }}

{{/* What the operator may do in the namespaces that it works in. */}}
{{- define "flywheel.rules" -}}
- apiGroups: [flywheel.dev]
  resources: [trainingjobs, modelversions, inferenceservices]
  verbs: [get, list, watch]
- apiGroups: [flywheel.dev]
  resources: [trainingjobs]
  # Those that train a service anew.
  verbs: [create]
- apiGroups: [flywheel.dev]
  resources: [modelversions]
  # Patched is the annotation that rejects one, deleted are those that go by their retention; the cage refuses all else.
  verbs: [create, patch, delete]
- apiGroups: [flywheel.dev]
  resources: [trainingjobs/status, modelversions/status, inferenceservices/status]
  verbs: [get, patch]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments, controllerrevisions]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [configmaps, services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# Deletes those of training attempts that are over, hang or are lost, and annotates serving ones when their versions change;
# the cage refuses all else.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch, delete]
# What keeps pods from being made at all stands only in events.
- apiGroups: [""]
  resources: [events]
  verbs: [get, list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
