{{/*
Names and labels. An object's name ends in what tells it from the others; what is too long is cut in front of that, and
gets five letters of its hash, so that two never fall together. 63 letters fit a label; servers' names have 46, so that
the names of their pods are not cut in turn (they stand in Prometheus' queries).
*/}}

{{/* (text, most letters) */}}
{{- define "llava-api.cut" -}}
{{- $text := index . 0 -}}
{{- $room := index . 1 | int -}}
{{- if gt (len $text) $room }}{{ printf "%s-%s" ($text | trunc (int (sub $room 6)) | trimSuffix "-") ($text | sha256sum | trunc 5) }}
{{- else }}{{ $text }}
{{- end }}
{{- end }}

{{- define "llava-api.fullname" -}}
{{- $chart := default .Chart.Name .Values.nameOverride -}}
{{- /* A release's name may have dots, a Service's may not. */}}
{{- $release := replace "." "-" .Release.Name -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride }}
{{- else if contains $chart $release }}{{ include "llava-api.cut" (list $release 46) }}
{{- else }}{{ include "llava-api.cut" (list (printf "%s-%s" $release $chart) 46) }}
{{- end }}
{{- end }}

{{/* (root, suffix, most letters): NAME-suffix. */}}
{{- define "llava-api.object" -}}
{{- $room := sub (index . 2) (add1 (len (index . 1))) -}}
{{ printf "%s-%s" (include "llava-api.cut" (list (include "llava-api.fullname" (index . 0)) $room)) (index . 1) }}
{{- end }}

{{/* (root, component): what is selected by. */}}
{{- define "llava-api.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* (root, component) */}}
{{- define "llava-api.labels" -}}
{{- $root := index . 0 -}}
{{ include "llava-api.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* (root, server, component): a server's pods, by its model. */}}
{{- define "llava-api.serverSelector" -}}
{{ include "llava-api.selector" (list (index . 0) (index . 2)) }}
llava-api/model: {{ (index . 1).key | quote }}
{{- end }}

{{- define "llava-api.serverLabels" -}}
{{ include "llava-api.labels" (list (index . 0) (index . 2)) }}
llava-api/model: {{ (index . 1).key | quote }}
{{- end }}

{{/* (root, component): labels of pods. Without versions, so that a chart that changes nothing in the pods does not restart them. */}}
{{- define "llava-api.podLabels" -}}
{{ include "llava-api.selector" . }}
{{- with (index . 0).Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
The servers of the release, one for each model: all values, with those of the model laid over them, and
name (of its objects), key (of its model's label), names (that it serves), kind, apiVersion and workload (kind and name of what runs its pods).
*/}}
{{- define "llava-api.servers" -}}
{{- $servers := list -}}
{{- range default (list dict) .Values.models }}
{{- $server := mergeOverwrite (deepCopy (omit $.Values "models")) (deepCopy .) }}
{{- $key := default "main" .name }}
{{- $adapters := list }}
{{- $lora := default list $server.settings.lora }}
{{- range kindIs "string" $lora | ternary (splitList "," (toString $lora)) $lora }}{{ $adapters = append $adapters (splitList "=" . | first | trim) }}{{ end }}
{{- $several := gt (int $server.multiNode.nodes) 1 }}
{{- $_ := set $server "key" $key }}
{{- $_ := set $server "name" (ternary (include "llava-api.object" (list $ $key 46)) (include "llava-api.fullname" $) (not (empty .name))) }}
{{- $_ := set $server "names" (concat (default (list $server.model) $server.servedModelNames) $adapters) }}
{{- $_ := set $server "kind" (ternary "LeaderWorkerSet" "Deployment" $several) }}
{{- /* The LeaderWorkerSet controller makes a Service of the set's name, by which the nodes find each other before they are
ready: no other Service may have that name. 36 letters: a StatefulSet's name has at most 52, and here -group-0 follows. */}}
{{- $_ := set $server "workload" (ternary (printf "%s-group" (include "llava-api.cut" (list $server.name 36))) $server.name $several) }}
{{- $_ := set $server "apiVersion" (ternary "leaderworkerset.x-k8s.io/v1" "apps/v1" $several) }}
{{- $servers = append $servers $server }}
{{- end }}
{{- toYaml (dict "servers" $servers) }}
{{- end }}

{{- define "llava-api.routed" -}}
{{- if and .Values.models .Values.router.enabled }}yes{{ end }}
{{- end }}

{{/* (root, server) */}}
{{- define "llava-api.image" -}}
{{- $image := (index . 1).image -}}
{{- if $image.digest }}{{ printf "%s@%s" $image.repository $image.digest }}
{{- else if $image.tag }}{{ printf "%s:%s" $image.repository $image.tag }}
{{- else }}{{ printf "%s:%s%s" $image.repository (index . 0).Chart.AppVersion (ternary "" "-cpu" (gt (int (index . 1).gpu.count) 0)) }}
{{- end }}
{{- end }}

{{- define "llava-api.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "llava-api.fullname" .) .Values.serviceAccount.name }}
{{- else }}{{ default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "llava-api.keysSecret" -}}
{{- default (include "llava-api.object" (list . "api-keys" 63)) .Values.apiKeys.existingSecret }}
{{- end }}

{{- define "llava-api.hubSecret" -}}
{{- if .Values.hub.existingSecret }}{{ .Values.hub.existingSecret }}
{{- else if .Values.hub.token }}{{ include "llava-api.object" (list . "hub" 63) }}
{{- end }}
{{- end }}

{{- define "llava-api.redisSecret" -}}
{{- if .Values.redis.existingSecret }}{{ .Values.redis.existingSecret }}
{{- else if .Values.redis.url }}{{ include "llava-api.object" (list . "redis" 63) }}
{{- end }}
{{- end }}

{{/* Server: the names of its pods, for Prometheus. */}}
{{- define "llava-api.podPattern" -}}
{{- if eq .kind "Deployment" }}{{ .workload }}-[a-z0-9]+-[a-z0-9]{5}{{ else }}{{ .workload }}-[0-9]+{{ end }}
{{- end }}

{{/* A setting as its environment variable takes it. */}}
{{- define "llava-api.setting" -}}
{{- if kindIs "slice" . }}
{{- $parts := list }}
{{- range . }}{{ $parts = append $parts (include "llava-api.setting" .) }}{{ end }}
{{- join "," $parts }}
{{- else if kindIs "string" . }}{{ . }}
{{- else }}{{ toJson . }}
{{- end }}
{{- end }}
