{{/*
The pods of a server: (root, server, component). Components: server (a single pod, or the leader of several nodes) and worker.
*/}}
{{- define "llava-api.podTemplate" -}}
{{- $root := index . 0 -}}
{{- $server := index . 1 -}}
{{- $component := index . 2 -}}
metadata:
  labels:
    {{- include "llava-api.podLabels" (list $root $component) | nindent 4 }}
    llava-api/model: {{ $server.key | quote }}
    {{- with $server.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: {{ $component }}
    {{- with $server.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "llava-api.podBasics" (list $root $server) | nindent 2 }}
  terminationGracePeriodSeconds: {{ $server.terminationGracePeriodSeconds }}
  {{- with $server.podSpec }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- if gt (int $server.gpu.count) 0 }}
  {{- with $server.gpu.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- end }}
  {{- with $server.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- range . }}
    - {{ toYaml (merge (deepCopy .) (dict "labelSelector" (dict "matchLabels" (include "llava-api.serverSelector" (list $root $server $component) | fromYaml)))) | nindent 6 | trim }}
    {{- end }}
  {{- end }}
  {{- $before := include "llava-api.fetchContainers" (list $root $server) }}
  {{- if or (eq $server.download.mode "job") (and (eq $server.download.mode "initContainer") $before) $server.initContainers }}
  initContainers:
    {{- if eq $server.download.mode "job" }}
    {{- include "llava-api.waitContainer" (list $root $server) | nindent 4 }}
    {{- else if eq $server.download.mode "initContainer" }}
    {{- $before | trim | nindent 4 }}
    {{- end }}
    {{- with $server.initContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    {{- include "llava-api.container" . | nindent 4 }}
    {{- with $server.sidecars }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "llava-api.serverVolumes" $server | nindent 4 }}
    {{- if eq $server.download.mode "initContainer" }}
    {{- with $server.download.volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- end }}
    - name: shm
      emptyDir:
        medium: Memory
        sizeLimit: {{ $server.shm.size }}
    {{- if $server.apiKeys.enabled }}
    - name: api-keys
      secret:
        secretName: {{ include "llava-api.keysSecret" $root }}
        defaultMode: 0440
    {{- end }}
    {{- if $server.apiKeys.limits }}
    - name: limits
      configMap:
        name: {{ include "llava-api.object" (list $root "limits" 63) }}
    {{- end }}
    {{- with $server.volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* (root, server): what the server's pods, the Job that fetches weights and the test have alike. */}}
{{- define "llava-api.podBasics" -}}
{{- $root := index . 0 -}}
{{- $server := index . 1 -}}
serviceAccountName: {{ include "llava-api.serviceAccount" $root }}
automountServiceAccountToken: false
{{- /* A Service called llava would set LLAVA_PORT, one called vllm VLLM_PORT. */}}
enableServiceLinks: false
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml $root.Values.podSecurityContext | nindent 2 }}
{{- /* The chart's own image is for amd64; one that is named by its tag or digest may be for another. */}}
{{- $arch := ternary dict (dict "kubernetes.io/arch" "amd64") (or $server.image.tag $server.image.digest | empty | not) }}
{{- with merge (deepCopy (default dict $server.nodeSelector)) $arch }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $tolerations := list }}
{{- if gt (int $server.gpu.count) 0 }}
{{- range $server.gpu.tolerations }}{{ $tolerations = append $tolerations (merge (dict "key" (default "" .key | replace "nvidia.com/" (printf "%s/" (dir $server.gpu.resource)))) .) }}{{ end }}
{{- end }}
{{- with concat $tolerations $server.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $server.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $server.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $server.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- end }}
