{{/* The chart's name, in labels. */}}
{{- define "teragpt.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/*
What every object is called: a Service's name, which begins with a letter and holds no dot, of at most 40 characters, so
that no suffix makes it longer than a label may be. A longer one ends in its own digest, so that no two become the same.
*/}}
{{- define "teragpt.fullname" -}}
{{- $name := include "teragpt.name" . }}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- $full = default $full .Values.fullnameOverride | replace "." "-" }}
{{- $full = ternary (printf "t-%s" $full) $full (regexMatch "^[0-9]" $full) }}
{{- if gt (len $full) 40 }}
{{- $full = printf "%s-%s" (trunc 31 $full) (sha256sum $full | trunc 8) }}
{{- end }}
{{- $full }}
{{- end }}

{{/* The API's Service. Not the full name: runs have a headless Service named teragpt of their own. */}}
{{- define "teragpt.service" -}}
{{ include "teragpt.fullname" . }}-api
{{- end }}

{{/* Cluster-wide objects carry the namespace too, so that two releases of one name do not meet. */}}
{{- define "teragpt.clusterName" -}}
{{ printf "%s:%s" .Release.Namespace (include "teragpt.fullname" .) }}
{{- end }}

{{/* Labels that select the control plane's pod. Frozen: a Deployment's selector cannot change. */}}
{{- define "teragpt.selectorLabels" -}}
app.kubernetes.io/name: {{ include "teragpt.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controlplane
{{- end }}

{{/* Labels of the release as a whole. */}}
{{- define "teragpt.releaseLabels" -}}
app.kubernetes.io/name: {{ include "teragpt.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: teragpt
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Metadata of an object: (dict "root" $ "name" … "namespace" … "component" … "labels" … "annotations" …). */}}
{{- define "teragpt.metadata" -}}
{{- $own := include "teragpt.releaseLabels" .root | fromYaml }}
{{- $own = set $own "app.kubernetes.io/component" (default "controlplane" .component) -}}
name: {{ .name }}
{{- if not .clusterWide }}
namespace: {{ default .root.Release.Namespace .namespace }}
{{- end }}
labels:
  {{- mergeOverwrite dict (.labels | default dict) .root.Values.commonLabels $own | toYaml | nindent 2 }}
{{- with mergeOverwrite dict .root.Values.commonAnnotations (.annotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* An image's reference: (dict "root" $ "image" .Values.image). */}}
{{- define "teragpt.image" -}}
{{- $registry := default .image.registry (.root.Values.global).imageRegistry }}
{{- $path := ternary (printf "%s/%s" $registry .image.repository) .image.repository (not (empty $registry)) }}
{{- if .image.digest }}
{{- printf "%s@%s" $path .image.digest }}
{{- else }}
{{- printf "%s:%s" $path (default .root.Chart.AppVersion .image.tag) }}
{{- end }}
{{- end }}

{{/* imagePullSecrets of the chart and of its parent. */}}
{{- define "teragpt.pullSecrets" -}}
{{- range concat ((.Values.global).imagePullSecrets | default list) .Values.imagePullSecrets | uniq }}
- name: {{ kindIs "string" . | ternary . (get (kindIs "map" . | ternary . dict) "name") }}
{{- end }}
{{- end }}

{{/* What runs take where their specs say nothing, as JSON; the chart's pull secrets unless others are given. */}}
{{- define "teragpt.runDefaults" -}}
{{- $given := dict }}
{{- range $name, $value := .Values.runs.defaults }}
{{- with $value }}
{{- $_ := set $given $name . }}
{{- end }}
{{- end }}
{{- with include "teragpt.pullSecrets" . | fromYamlArray }}
{{- $names := list }}
{{- range . }}
{{- $names = append $names .name }}
{{- end }}
{{- $_ := set $given "compute" (merge dict ($given.compute | default dict) (dict "image_pull_secrets" $names)) }}
{{- end }}
{{- toJson $given }}
{{- end }}

{{- define "teragpt.serviceAccount" -}}
{{- default (ternary (include "teragpt.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{/* The namespace of runs that name none. */}}
{{- define "teragpt.runsNamespace" -}}
{{ default .Release.Namespace .Values.runs.namespace }}
{{- end }}

{{/* Namespaces that have the labels of runs.namespaceSelector now, with commas; none where Helm sees no cluster. */}}
{{- define "teragpt.foundNamespaces" -}}
{{- $found := list }}
{{- with .Values.runs.namespaceSelector }}
{{- $wanted := . }}
{{- range (lookup "v1" "Namespace" "" "").items }}
{{- $labels := .metadata.labels | default dict }}
{{- if eq (toJson $labels) (mergeOverwrite (deepCopy $labels) $wanted | toJson) }}
{{- $found = append $found .metadata.name }}
{{- end }}
{{- end }}
{{- end }}
{{- sortAlpha $found | join "," }}
{{- end }}

{{/* Every namespace that runs may live in, with commas; first that of runs that name none. */}}
{{- define "teragpt.runsNamespaces" -}}
{{- $found := include "teragpt.foundNamespaces" . | splitList "," }}
{{- concat (list (include "teragpt.runsNamespace" .)) .Values.runs.namespaces $found | uniq | compact | join "," }}
{{- end }}

{{/* Whether all that lasts is in a database, which control planes share; empty where one has its volume to itself. */}}
{{- define "teragpt.shared" -}}
{{- if .Values.database.existingSecret }}true{{ end }}
{{- end }}

{{/* The claims, made or given. */}}
{{- define "teragpt.storeClaim" -}}
{{ default (printf "%s-store" (include "teragpt.fullname" .)) .Values.store.existingClaim }}
{{- end }}

{{- define "teragpt.runsClaim" -}}
{{ default (printf "%s-runs" (include "teragpt.fullname" .)) .Values.runs.storage.existingClaim }}
{{- end }}

{{/* The storage of runs as TeraGPT names it. */}}
{{- define "teragpt.storage" -}}
{{ default (printf "pvc://%s" (include "teragpt.runsClaim" .)) .Values.runs.storage.uri }}
{{- end }}

{{/* The API as pods of runs reach it. */}}
{{- define "teragpt.url" -}}
{{- $own := printf "http://%s.%s.svc:%v" (include "teragpt.service" .) .Release.Namespace .Values.service.port }}
{{- default $own .Values.publicUrl | trimSuffix "/" }}
{{- end }}

{{/* A claim's specification: (.Values.store or .Values.runs.storage). */}}
{{- define "teragpt.claimSpec" -}}
accessModes:
  {{- toYaml .accessModes | nindent 2 }}
{{- if .storageClass }}
storageClassName: {{ ternary "" .storageClass (eq .storageClass "-") | quote }}
{{- end }}
resources:
  requests:
    storage: {{ .size }}
{{- end }}

{{/* The variables that say who may call. Where no token is asked for, the API must know every name that it goes by. */}}
{{- define "teragpt.access" -}}
{{- $auth := .Values.auth }}
{{- if ne $auth.mode "token" }}
TERAGPT_AUTH: {{ $auth.mode }}
{{- end }}
{{- if eq $auth.mode "tokens" }}
TERAGPT_TOKENS_FILE: /run/access/tokens
{{- else if eq $auth.mode "oidc" }}
TERAGPT_OIDC_ISSUER: {{ $auth.oidc.issuer | quote }}
TERAGPT_OIDC_AUDIENCE: {{ $auth.oidc.audience | quote }}
TERAGPT_OIDC_USER_CLAIM: {{ $auth.oidc.userClaim | quote }}
TERAGPT_OIDC_GROUPS_CLAIM: {{ $auth.oidc.groupsClaim | quote }}
TERAGPT_OIDC_GROUPS: {{ join "," $auth.oidc.groups | quote }}
TERAGPT_OIDC_ALGORITHMS: {{ join "," $auth.oidc.algorithms | quote }}
TERAGPT_OIDC_CLOCK_SKEW_S: {{ toJson $auth.oidc.clockSkewS | quote }}
{{- else if eq $auth.mode "proxy" }}
TERAGPT_PROXY_NETWORKS: {{ join "," $auth.proxy.networks | quote }}
TERAGPT_PROXY_USER_HEADER: {{ $auth.proxy.userHeader | quote }}
{{- if $auth.proxy.existingSecret }}
TERAGPT_PROXY_SECRET_FILE: /run/access/secret
{{- end }}
{{- else if eq $auth.mode "none" }}
TERAGPT_OPEN_TO_ANYONE: "true"
{{- $service := include "teragpt.service" . }}
{{- $within := printf "%s.%s" $service .Release.Namespace }}
{{- $own := list $service $within (printf "%s.svc" $within) (printf "%s.svc.cluster.local" $within) }}
TERAGPT_ALLOWED_HOSTS: {{ concat $own .Values.ingress.hosts .Values.httpRoute.hostnames | join "," | quote }}
{{- end }}
{{- end }}

{{/*
Whether Helm sees a cluster. Who may not read cluster-wide gets an error of Helm's here that no template can catch, and
that shows this one's name: it says the mend.
*/}}
{{- define "with the rights of one namespace alone, set rbac.workloads=false,runs.kind=Job" -}}
{{- if lookup "v1" "Namespace" "" "kube-system" }}true{{ end }}
{{- end }}

{{/*
What is wrong with a network that the schema takes, and what may have been meant; empty where nothing is. Its address is
cut into numbers (of 8 bits with dots, of 16 with colons), and of each the bits that are the host's must be 0.
*/}}
{{- define "teragpt.networkMeant" -}}
{{- $dots := contains "." . }}
{{- $width := ternary 8 16 $dots }}
{{- $address := splitList "/" . | first }}
{{- $halves := splitList "::" $address }}
{{- $parts := splitList (ternary "." ":" $dots) (first $halves) | compact }}
{{- if gt (len $halves) 1 }}
{{- $rest := splitList ":" (last $halves) | compact }}
{{- $zeros := sub 8 (add (len $parts) (len $rest)) | max 0 | int }}
{{- $parts = ternary (concat $parts (repeat $zeros "0," | splitList "," | compact) $rest) list (gt $zeros 0) }}
{{- end }}
{{- $bits := mul (len $parts) $width }}
{{- if or (gt (len $halves) 2) (regexMatch ":::|^:[^:]|[^:]:$" $address) (ne $bits (ternary 32 128 $dots | int64)) }}; allowed: networks such as 10.0.0.0/24 or fd00::/64
{{- else if contains "/" . }}
{{- $prefix := splitList "/" . | last | int }}
{{- $meant := list }}
{{- $hosts := 0 }}
{{- range $place, $part := $parts }}
{{- $unit := 1 }}
{{- range until (sub (mul $width (add1 $place)) $prefix | max 0 | min $width | int) }}
{{- $unit = mul 2 $unit }}
{{- end }}
{{- $value := ternary $part (printf "0x%v" $part) $dots | int64 }}
{{- $hosts = add $hosts (mod $value $unit) }}
{{- $meant = append $meant (printf (ternary "%d" "%x" $dots) (sub $value (mod $value $unit))) }}
{{- end }}
{{- if $hosts }}, where bits of a host are set; allowed: {{ join (ternary "." ":" $dots) $meant }}/{{ $prefix }}, or {{ $address }} alone{{ end }}
{{- end }}
{{- end }}

{{/* The Secret of what the control plane knows users by, its key, and the name of its file; empty where there is none. */}}
{{- define "teragpt.accessSecret" -}}
{{- if eq .Values.auth.mode "tokens" }}
secretName: {{ .Values.auth.tokens.existingSecret }}
items: [{key: {{ .Values.auth.tokens.existingSecretKey | quote }}, path: tokens}]
{{- else if and (eq .Values.auth.mode "proxy") .Values.auth.proxy.existingSecret }}
secretName: {{ .Values.auth.proxy.existingSecret }}
items: [{key: {{ .Values.auth.proxy.existingSecretKey | quote }}, path: secret}]
{{- end }}
{{- end }}

{{/* The control plane's own variables (docs/settings.md), by name. */}}
{{- define "teragpt.environment" -}}
TERAGPT_CLUSTER: kubernetes
TERAGPT_NAMESPACE: {{ include "teragpt.runsNamespaces" . | quote }}
TERAGPT_KIND: {{ .Values.runs.kind | quote }}
TERAGPT_IMAGE: {{ include "teragpt.image" (dict "root" . "image" .Values.trainer.image) | quote }}
TERAGPT_STORAGE: {{ include "teragpt.storage" . | quote }}
TERAGPT_PUBLIC_URL: {{ include "teragpt.url" . | quote }}
TERAGPT_AUDIENCE: {{ .Values.auth.audience | quote }}
TERAGPT_HOME: /data
TERAGPT_HOST: 0.0.0.0
TERAGPT_PORT: "8000"
{{- include "teragpt.access" . }}
{{- with .Values.runs.queue }}
TERAGPT_QUEUE: {{ . | quote }}
{{- end }}
{{- with include "teragpt.runDefaults" . | fromJson }}
TERAGPT_RUN_DEFAULTS: {{ toJson . | quote }}
{{- end }}
{{- range $name, $value := .Values.settings }}
TERAGPT_{{ snakecase $name | upper }}: {{ kindIs "float64" $value | ternary (toJson $value) $value | quote }}
{{- end }}
{{- end }}
