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
{{- $own := include "llava-api.listening" (list $server $settings) | fromYaml }}
{{- $_ := set $own "cache_dir" "/cache/llava-api" }}
{{- if $server.batches.enabled }}{{ $_ := set $own "data_dir" "/files" }}{{ end }}
{{- $_ := set $own "drain_timeout_seconds" $server.drainTimeoutSeconds }}
{{- /* An endpoint picker reads /metrics at the pool's own port, and shows no key. */}}
{{- if $server.inferencePool.enabled }}{{ $_ := set $own "metrics" "open" }}{{ end }}
{{- with $server.servedModelNames }}{{ $_ := set $own "served_model_name" . }}{{ end }}
{{- with $server.revision }}{{ $_ := set $own "revision" . }}{{ end }}
{{- if $server.apiKeys.limits }}{{ $_ := set $own "key_limits_file" "/etc/llava-api/limits/limits.toml" }}{{ end -}}
{{ include "llava-api.places" $server }}
{{- range $name, $value := merge $own $settings }}
LLAVA_{{ upper $name }}: {{ include "llava-api.setting" $value | quote }}
{{- end }}
{{- end }}

{{/* (values, settings): what servers and router have alike: where they listen, and whom they let in. */}}
{{- define "llava-api.listening" -}}
{{- $values := index . 0 -}}
{{- $own := dict "host" $values.listenAddress "port" 8000 "log_format" $values.logFormat "metrics" "off" }}
{{- if $values.metrics.enabled }}
{{- $_ := set $own "metrics_host" $values.listenAddress }}
{{- $_ := set $own "metrics_port" $values.metrics.port }}
{{- end }}
{{- if $values.apiKeys.enabled }}
{{- $_ := set $own "api_key_dir" "/etc/llava-api/keys" }}
{{- else }}
{{- $_ := set $own "allow_anonymous" true }}
{{- /* Without keys the server answers to names that it knows; the entrance's are known here. */}}
{{- $hosts := default list (index . 1).allowed_hosts }}
{{- if kindIs "string" $hosts }}{{ $hosts = splitList "," $hosts }}{{ end }}
{{- if $values.ingress.enabled }}{{ $hosts = concat $hosts $values.ingress.hosts }}{{ end }}
{{- if $values.httpRoute.enabled }}{{ $hosts = concat $hosts $values.httpRoute.hostnames }}{{ end }}
{{- with $hosts }}{{ $_ := set $own "allowed_hosts" (uniq .) }}{{ end }}
{{- end }}
{{- toYaml $own }}
{{- end }}
