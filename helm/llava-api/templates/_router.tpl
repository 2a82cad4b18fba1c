{{/* LiteLLM's configuration, as YAML. Every name that a server answers to is a model of its own. */}}
{{- define "llava-api.routerConfig" -}}
{{- $models := list -}}
{{- range $server := (include "llava-api.servers" . | fromYaml).servers }}
{{- range $server.names }}
{{- /* hosted_vllm hands vLLM's own fields (top_k, min_p ...) on. The key is the caller's: files/router_keys.py. */}}
{{- $to := dict "model" (printf "hosted_vllm/%s" .) "api_base" (printf "http://%s:8000/v1" $server.name) "api_key" "none" }}
{{- $models = append $models (dict "model_name" . "litellm_params" $to) }}
{{- end }}
{{- end }}
{{- $seconds := int .Values.router.timeoutSeconds -}}
{{- /* No retries, and no pause for a server: it answers itself that it is busy, and the caller gets that answer. */}}
{{- $config := dict
  "model_list" $models
  "litellm_settings" (dict "callbacks" "router_keys.callers_key" "request_timeout" $seconds "num_retries" 0 "telemetry" false)
  "router_settings" (dict "num_retries" 0 "disable_cooldowns" true "timeout" $seconds)
  "general_settings" (dict "custom_auth" "router_keys.authenticate" "disable_spend_logs" true)
}}
{{- toYaml (mergeOverwrite $config .Values.router.config) }}
{{- end }}
