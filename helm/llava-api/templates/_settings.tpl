{{/* (root, server): the server's settings, all that is not secret, as a map of environment variables. */}}
{{- define "llava-api.settings" -}}
{{- $root := index . 0 -}}
{{- $server := index . 1 -}}
{{- $settings := deepCopy $server.settings -}}
{{- if not (or (hasKey $settings "tensor_parallel_size") (hasKey $settings "pipeline_parallel_size") (hasKey $settings "data_parallel_size")) }}
{{- if gt (int $server.gpu.count) 1 }}{{ $_ := set $settings "tensor_parallel_size" $server.gpu.count }}{{ end }}
{{- if gt (int $server.multiNode.nodes) 1 }}{{ $_ := set $settings "pipeline_parallel_size" $server.multiNode.nodes }}{{ end }}
{{- end }}
{{- if gt (int $server.multiNode.nodes) 1 }}{{ $_ := set $settings "distributed_executor_backend" "ray" }}{{ end }}
{{- /* An endpoint picker reads /metrics at the pool's own port, and shows no key. */}}
{{- $own := dict
  "host" $server.listenAddress
  "port" 8000
  "cache_dir" "/cache/llava-api"
  "drain_timeout_seconds" $server.drainTimeoutSeconds
  "log_format" $server.logFormat
  "metrics" (ternary "open" "off" $server.inferencePool.enabled)
}}
{{- with $server.servedModelNames }}{{ $_ := set $own "served_model_name" . }}{{ end }}
{{- with $server.revision }}{{ $_ := set $own "revision" . }}{{ end }}
{{- if $server.metrics.enabled }}
{{- $_ := set $own "metrics_host" $server.listenAddress }}
{{- $_ := set $own "metrics_port" $server.metrics.port }}
{{- end }}
{{- if $server.apiKeys.enabled }}
{{- $_ := set $own "api_key_dir" "/etc/llava-api/keys" }}
{{- else }}
{{- $_ := set $own "allow_anonymous" true }}
{{- /* Without keys the server answers to names that it knows; the entrance's are known here. */}}
{{- $hosts := default list $settings.allowed_hosts }}
{{- if kindIs "string" $hosts }}{{ $hosts = splitList "," $hosts }}{{ end }}
{{- if $server.ingress.enabled }}{{ $hosts = concat $hosts $server.ingress.hosts }}{{ end }}
{{- if $server.httpRoute.enabled }}{{ $hosts = concat $hosts $server.httpRoute.hostnames }}{{ end }}
{{- with $hosts }}{{ $_ := set $own "allowed_hosts" (uniq .) }}{{ end }}
{{- end }}
{{- if $server.apiKeys.limits }}{{ $_ := set $own "key_limits_file" "/etc/llava-api/limits/limits.toml" }}{{ end -}}
{{ include "llava-api.places" $server }}
{{- range $name, $value := merge $own $settings }}
LLAVA_{{ upper $name }}: {{ include "llava-api.setting" $value | quote }}
{{- end }}
{{- end }}
