-- Health of a TrainingJob for Argo CD (resource.customizations.health.flywheel.dev_TrainingJob).
local function condition(kind)
  for _, c in ipairs((obj.status or {}).conditions or {}) do
    if c.type == kind then return c end
  end
  return {}
end

local status = obj.status or {}
-- -1 until the operator has seen the object; older than the object while it has not seen the change.
if status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "Waiting for the Flywheel operator"}
end
local ready, stalled = condition("Ready"), condition("Stalled")
if stalled.status == "True" then
  return {status = "Degraded", message = stalled.message or stalled.reason or ""}
end
if condition("Suspended").status == "True" then
  return {status = "Suspended", message = condition("Suspended").message or ""}
end
if ready.status == "True" then
  return {status = "Healthy", message = ready.message or ""}
end
return {status = "Progressing", message = ready.message or "Waiting for the Flywheel operator"}
