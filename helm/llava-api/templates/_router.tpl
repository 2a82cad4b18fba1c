{{/* Root: the router as the templates of servers see one: its image is the servers' without CUDA. */}}
{{- define "llava-api.router" -}}
{{- $image := deepCopy .Values.image }}
{{- range $field, $value := .Values.router.image }}{{ if $value }}{{ $_ := set $image $field $value }}{{ end }}{{ end }}
{{- toYaml (merge (dict "image" $image "gpu" (dict "count" 0)) (omit .Values.router "image")) }}
{{- end }}

{{/* Root: the longest time that an answer of any server may take to finish. */}}
{{- define "llava-api.routerDrain" -}}
{{- $seconds := 0 }}
{{- range (include "llava-api.servers" . | fromYaml).servers }}{{ $seconds = max $seconds (int .drainTimeoutSeconds) }}{{ end }}
{{- $seconds }}
{{- end }}

{{/* Root: the router's settings, as a map of environment variables: those of the top level, and its own. */}}
{{- define "llava-api.routerSettings" -}}
{{- $body := int (default 100000000 .Values.settings.max_body_bytes) }}
{{- range (include "llava-api.servers" . | fromYaml).servers }}{{ $body = max $body (int (default 0 .settings.max_body_bytes)) }}{{ end }}
{{- /* What concerns a server in front of the models' own: FRONT_SETTINGS of cli/flags.py; a test compares them. */}}
{{- $top := pick .Values.settings "trusted_proxies" "root_path" "log_level" "cors_allow_origins" "allowed_hosts" "any_model" "ollama_api" "short_paths" "accept_request_ids" "request_timeout_seconds" "stream_head_seconds" "stream_keep_alive_seconds" "max_connections" "max_header_bytes" "receive_timeout_seconds" "body_timeout_seconds" "reader_timeout_seconds" "keep_alive_seconds" }}
{{- /* It must not take a server that still computes for a lost one: the request would be computed twice. */}}
{{- range (include "llava-api.servers" . | fromYaml).servers }}
{{- $seconds := default 600 .settings.request_timeout_seconds }}
{{- if gt (float64 $seconds) (float64 (default 600 $top.request_timeout_seconds)) }}{{ $_ := set $top "request_timeout_seconds" $seconds }}{{ end }}
{{- end }}
{{- $settings := merge (deepCopy .Values.router.settings) (dict "max_inflight_bytes" 1000000000 "max_body_bytes" $body) $top }}
{{- $own := include "llava-api.listening" (list .Values $settings) | fromYaml }}
{{- $_ := set $own "drain_timeout_seconds" (include "llava-api.routerDrain" . | int) -}}
HOME: /tmp
{{- range $name, $value := merge $own $settings }}
LLAVA_{{ upper $name }}: {{ include "llava-api.setting" $value | quote }}
{{- end }}
{{- end }}

{{/* Root: what the router passes requests on to. A name that has an address for each pod, unlike the model's Service. */}}
{{- define "llava-api.backends" -}}
{{- $backends := list }}
{{- range (include "llava-api.servers" . | fromYaml).servers }}
{{- $backends = append $backends (printf "http://%s:8000" (include "llava-api.object" (list $ (printf "%s-pods" .key) 63))) }}
{{- end }}
{{- toJson $backends }}
{{- end }}

{{/* Root: what holds the key that lists the servers' models: a folder of keys, or a file. */}}
{{- define "llava-api.routerKeyFile" -}}
{{- if .Values.router.key.existingSecret }}/etc/llava-api/router-key/{{ .Values.router.key.secretKey }}
{{- else if .Values.apiKeys.enabled }}/etc/llava-api/keys
{{- end }}
{{- end }}

{{/* Root: a group of alerts on the router; empty without one. */}}
{{- define "llava-api.routerAlerts" -}}
{{- if include "llava-api.routed" . -}}
{{- $name := include "llava-api.object" (list . "router" 46) }}
{{- $pods := include "llava-api.routerPods" . }}
- name: {{ include "llava-api.fullname" . }}-router
  rules:
    - alert: LlavaApiRouterGone
      expr: absent(llava_api_router_build_info{ {{- $pods -}} })
      for: 5m
      labels: {severity: critical}
      annotations:
        summary: No pod of {{ $name }} in {{ .Release.Namespace }} gives its metrics, so no model can be reached.
        runbook_url: {{ .Values.prometheusRule.runbookUrl }}#llavaapiroutergone
    - alert: LlavaApiRouterErrors
      expr: >-
        sum by (model) (rate(llava_api_router_requests_total{ {{- $pods -}} ,route!~"/health.*|/metrics",status=~"5.."}[5m]))
        / sum by (model) (rate(llava_api_router_requests_total{ {{- $pods -}} ,route!~"/health.*|/metrics"}[5m])) > {{ .Values.prometheusRule.errorRatio }}
      for: 10m
      labels: {severity: warning}
      annotations:
        summary: {{ `{{ $value | humanizePercentage }} of the requests for {{ $labels.model }} fail, as the router sees it.` | quote }}
        runbook_url: {{ .Values.prometheusRule.runbookUrl }}#llavaapiroutererrors
{{- end }}
{{- end }}

{{/* Root: the router's pods, as a selector of Prometheus. */}}
{{- define "llava-api.routerPods" -}}
{{- printf `namespace="%s",pod=~"%s-[a-z0-9]+-[a-z0-9]{5}"` .Release.Namespace (include "llava-api.object" (list . "router" 46)) }}
{{- end }}
