"""Workarounds for faults in Ray, one per file; only these files depend on Ray's internals.

Each file says on which version of Ray the fault was seen, what goes wrong without the workaround, and which test shows when
it can go: remove the workaround, and if that test passes, it is no longer needed. `PRIVATE_NAMES` lists the undocumented
names of Ray that these files use; tests/tuning/test_ray_private_names.py looks for each of them in the installed Ray.
"""

PRIVATE_NAMES = {
    "ray._private.authentication.authentication_token_setup._warn_token_auth_enabled": "quiet",
    "ray._private.ray_constants.ENABLE_RAY_CLUSTER": "loopback",
    "ray._private.ray_constants.RAY_API_SERVER_ADDRESS_ENVIRONMENT_VARIABLE": "loopback",
    "ray.air.execution._internal.actor_manager.RayActorManager._actor_task_failed": "memory_monitor",
    "ray.tune.experiment.Trial.handle_error": "memory_monitor",
    "ray.train._internal.storage._FilesystemSyncer": "waiting_for_copies",
    "ray.train._internal.syncer._BackgroundProcess._process": "waiting_for_copies",
    "ray.train.v2.api.data_parallel_trainer.DataParallelTrainer._create_default_callbacks": "controller",
    "ray.train.v2.api.data_parallel_trainer.DataParallelTrainer._initialize_and_run_controller": "controller",
    "ray.train.v2._internal.callbacks.datasets.DatasetsCallback": "controller",
    "ray.train.v2._internal.callbacks.placement_group_callback.PlacementGroupCleanerCallback": "controller",
    "ray.train.v2._internal.execution.controller.TrainController.get_result": "controller",
    "ray.train.v2._internal.execution.controller.TrainController.run": "controller",
    "ray.train.v2._internal.execution.callback.WorkerGroupCallback": "placement_groups",
    "ray.experimental.internal_kv._internal_kv_del": "placement_groups",
    "ray.experimental.internal_kv._internal_kv_get": "placement_groups",
    "ray.experimental.internal_kv._internal_kv_list": "placement_groups",
    "ray.experimental.internal_kv._internal_kv_put": "placement_groups",
    "ray.tune.search.optuna.OptunaSearch._ot_trials": "searcher",
    "ray.tune.search.optuna.OptunaSearch._completed_trials": "searcher",
    "ray.tune.search.optuna.OptunaSearch._ot_study": "searcher",
    "ray.train._internal.storage.StorageContext.trial_fs_path": "copied_files",
    "ray.train._internal.syncer._BackgroundSyncer._sync_process": "waiting_for_copies",
    "ray.tune.experiment.Trial.run_metadata": "retries",
    "ray.tune.experiment.trial._TrainingRunMetadata.num_failures": "retries",
}
"""Undocumented names of Ray, each with the file here that needs it. Attributes of instances are written after their class."""
