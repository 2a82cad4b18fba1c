{{/*
Where weights and caches are. /data holds weights only, so that it may be read-only; /cache holds what is made of them
(compiled kernels, converted and quantized checkpoints) and what libraries write.
*/}}

{{/* Server: "yes" if the volume itself is read-only. */}}
{{- define "llava-api.readOnlyVolume" -}}
{{- if or .persistence.readOnly .persistence.volume.image (and .persistence.enabled (eq (uniq .persistence.accessModes | join "") "ReadOnlyMany")) }}yes{{ end }}
{{- end }}

{{/* Server: "yes" if the weights are there before it starts, so that it needs neither the hub nor to write to /data. */}}
{{- define "llava-api.weightsAreThere" -}}
{{- if or (include "llava-api.readOnlyVolume" .) .hub.offline (eq .download.mode "job") }}yes{{ end }}
{{- end }}

{{/* Server: the volume of /data. */}}
{{- define "llava-api.dataVolume" -}}
- name: data
  {{- if .persistence.volume }}
  {{- toYaml .persistence.volume | nindent 2 }}
  {{- else if .persistence.enabled }}
  persistentVolumeClaim:
    claimName: {{ default .name .persistence.existingClaim }}
    {{- if include "llava-api.readOnlyVolume" . }}
    readOnly: true
    {{- end }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .persistence.size }}
  {{- end }}
{{- end }}

{{/* Server: /data, /cache, /files and /tmp. */}}
{{- define "llava-api.serverVolumes" -}}
{{ include "llava-api.dataVolume" . }}
- name: cache
  {{- if .cache.enabled }}
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-cache" .name) .cache.existingClaim }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .cache.size }}
  {{- end }}
{{- if .batches.enabled }}
- name: files
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-batches" .name) .batches.existingClaim }}
{{- end }}
{{ include "llava-api.tmpVolume" . }}
{{- end }}

{{- define "llava-api.tmpVolume" -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ .tmp.size }}
{{- end }}

{{/* Server: its mounts of them. */}}
{{- define "llava-api.serverMounts" -}}
- name: data
  mountPath: /data
  {{- if include "llava-api.weightsAreThere" . }}
  readOnly: true
  {{- end }}
- name: cache
  mountPath: /cache
{{- if .batches.enabled }}
- name: files
  mountPath: /files
{{- end }}
- name: tmp
  mountPath: /tmp
{{- end }}

{{/* Server: where libraries find weights and write, as the image's variables say it for one volume. */}}
{{- define "llava-api.places" -}}
HF_HUB_CACHE: /data/huggingface/hub
HF_HOME: /cache/huggingface
XDG_CACHE_HOME: /cache
XDG_CONFIG_HOME: /cache/config
TORCHINDUCTOR_CACHE_DIR: /cache/torchinductor
TRITON_HOME: /cache
NUMBA_CACHE_DIR: /cache/numba
{{- /* Whatever a library keeps in the home folder. */}}
HOME: /tmp
{{- with .hub.endpoint }}
HF_ENDPOINT: {{ . | quote }}
{{- end }}
{{- if include "llava-api.weightsAreThere" . }}
HF_HUB_OFFLINE: "1"
{{- end }}
{{- end }}

{{/* For a container without a GPU: the CUDA image's base asks for all GPUs of the node, which a node whose default
runtime is NVIDIA's would give it. */}}
{{- define "llava-api.noGpu" -}}
name: NVIDIA_VISIBLE_DEVICES
value: void
{{- end }}

{{/* Root: the claims of all servers, for Prometheus. */}}
{{- define "llava-api.claims" -}}
{{- $claims := list }}
{{- range (include "llava-api.servers" . | fromYaml).servers }}
{{- if and .persistence.enabled (not (include "llava-api.readOnlyVolume" .)) }}{{ $claims = append $claims (default .name .persistence.existingClaim) }}{{ end }}
{{- if .cache.enabled }}{{ $claims = append $claims (default (printf "%s-cache" .name) .cache.existingClaim) }}{{ end }}
{{- if .batches.enabled }}{{ $claims = append $claims (default (printf "%s-batches" .name) .batches.existingClaim) }}{{ end }}
{{- end }}
{{- uniq $claims | join "|" }}
{{- end }}
